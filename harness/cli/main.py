"""The command line. Verbs are thin: each loads recipes, calls one part, and prints what it answers.

stdout carries the answer, stderr the progress. An argument with `=` in it that is not a file overrides a recipe key
and goes through the same checks as the file; no option repeats a recipe field. What a verb needs is imported inside
it, so that `harness --help` answers at once.
"""

from __future__ import annotations

from typing import Annotated

import typer

from harness.common.exits import guarded

app = typer.Typer(
    name="harness",
    help="Fine-tune multimodal LLMs with and without ReGATE, and measure what it saves and what it costs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    epilog="Exit codes: 0 done, 1 the run failed, 2 usage or recipe, 3 environment, 4 data, 5 stale results, "
    "75 stopped (the same command resumes).",
)
data_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Make and check data sets.")
app.add_typer(data_app, name="data")

_RECIPES = "Recipe files or names of shipped recipes, and key=value overrides (gate.keep_ratio=0.25)."
_SOME = "As for `run`; without a recipe, everything in the results folder (paths.results=... names another)."
Recipes = Annotated[list[str], typer.Argument(metavar="RECIPE|KEY=VALUE", help=_RECIPES, show_default=False)]
SomeRecipes = Annotated[list[str] | None, typer.Argument(metavar="RECIPE|KEY=VALUE", help=_SOME, show_default=False)]
_NAMED = "Runs (an id or its beginning), suites or recipes, and key=value; without a name, all of the results folder."
Named = Annotated[
    list[str] | None, typer.Argument(metavar="RUN|SUITE|RECIPE|KEY=VALUE", help=_NAMED, show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]


def main() -> None:
    """The `harness` command."""
    app(prog_name="harness")


def _version(wanted: bool) -> None:
    if wanted:
        import regate

        typer.echo(regate.__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    return


# --- the work --------------------------------------------------------------------------------------------


@app.command()
@guarded
def run(recipes: Recipes) -> None:
    """Do everything: prepare, reference, train, eval, tables. What is there and current is not repeated."""
    from harness.cli.arguments import recipes_to_run
    from harness.cli.run_names import known_suites
    from harness.common.progress import Progress
    from harness.plan import Planner

    planner = Planner()
    loaded = recipes_to_run(recipes, planner)
    from harness import pipeline

    typer.echo(pipeline.run(loaded, Progress(), known_suites(recipes), planner=planner))


@app.command()
@guarded
def prepare(recipes: Recipes) -> None:
    """Make the data and weights that can be made. What you have to supply yourself is named."""
    _stage(recipes)


@app.command()
@guarded
def reference(recipes: Recipes) -> None:
    """Compute the teacher's loss on every target. It is done once for a data set (Eq. 1)."""
    _stage(recipes, "reference")


@app.command()
@guarded
def train(recipes: Recipes) -> None:
    """Fine-tune, after the reference losses. A stopped training goes on from its newest checkpoint."""
    _stage(recipes, "train")


@app.command("eval")
@guarded
def evaluate(recipes: Recipes) -> None:
    """Score the kept models of a training, or a model as it is (`evaluate/...`), with lmms-eval."""
    from harness.cli.arguments import evaluations_apart, split
    from harness.common.progress import Progress
    from harness.config.load import EVALUATION, load

    names, others = evaluations_apart(recipes)
    runs, overrides = split(others)
    as_they_are = [load(EVALUATION, name, overrides) for name in names]
    if runs or not as_they_are:
        _stage(others, "evaluate")
    if as_they_are:
        from harness.evaluation.standalone import evaluate_standalone

        for recipe in as_they_are:
            typer.echo(evaluate_standalone(recipe, Progress()))


def _stage(arguments: list[str], name: str | None = None) -> None:
    """One stage of each recipe, and then how far its run is. All are checked before torch is imported."""
    from harness.cli.arguments import recipes_to_run
    from harness.cli.status import run_status, status_lines
    from harness.common.progress import Progress
    from harness.plan import Planner

    planner, progress = Planner(), Progress()
    recipes = recipes_to_run(arguments, planner)
    from harness import pipeline

    for recipe in recipes:
        run_dir = pipeline.run_stage(recipe, name, progress, planner)
        if run_dir is not None:
            typer.echo("\n".join(status_lines([run_status(run_dir)])))


@app.command()
@guarded
def tables(
    arguments: SomeRecipes = None,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit 5 where the tables on disk are not the records'.")
    ] = False,
    everything: Annotated[
        bool, typer.Option("--all", help="Print the paper's tables, too, whatever was run.")
    ] = False,
    json: Json = False,
) -> None:
    """Write the tables and figures of all finished runs. The tables are printed."""
    from harness.cli.arguments import results_folder
    from harness.cli.run_names import known_suites
    from harness.report import tables as report_tables
    from harness.report.figures import build as figures
    from harness.report.tables.compare import as_json

    results, suites = results_folder(arguments or []), known_suites(arguments or [])
    if check:
        files = report_tables.check_tables(results, suites)
        if json:
            _print_json({"schema": 1, "current": [str(path) for path in files]})
            return
        typer.echo(f"{len(files)} files below {results / 'tables'} are what the records give")
        return
    built = report_tables.make_tables(results, suites)
    report_tables.write_tables(built, results)
    figures.build_figures(results)
    if json:
        _print_json(as_json([table for table in built if everything or table.printed]))
    else:
        typer.echo(report_tables.printed(built, everything=everything))


@app.command("figures")
@guarded
def draw_figures(
    arguments: Named = None,
    draw: Annotated[
        list[str] | None, typer.Option("--draw", metavar="ARM", help="Arm of a suite to draw; may be repeated.")
    ] = None,
) -> None:
    """Draw accuracy curves, reference losses and elided words. The files are named."""
    from harness.cli.report import make_figures
    from harness.common.progress import Progress

    typer.echo("\n".join(map(str, make_figures(arguments or [], draw or [], Progress()))))


@app.command()
@guarded
def report(arguments: Named = None) -> None:
    """Write one HTML file of a run, a pair, a suite or several runs. It needs no server, network or scripts."""
    from harness.cli.report import make_reports
    from harness.common.progress import Progress

    typer.echo("\n".join(map(str, make_reports(arguments or [], Progress()))))


# --- reading ---------------------------------------------------------------------------------------------


@app.command()
@guarded
def validate(recipes: Recipes, json: Json = False) -> None:
    """Check recipes and tell every mistake at once. Each has its place, and what was probably meant."""
    from harness.cli.arguments import documents_of, split
    from harness.cli.inspect import validation

    if json:
        answer = validation(*split(recipes))
        _print_json(answer)
        raise typer.Exit(0 if answer["ok"] else 2)
    for recipe in documents_of(recipes):
        typer.echo(f"{recipe.name}: in order, run {recipe.run_id}")


@app.command()
@guarded
def plan(recipes: Recipes, json: Json = False) -> None:
    """Resolve recipes into numbers, and run nothing. Steps, targets, what it takes, what is missing, warnings."""
    from harness.cli.arguments import recipes_of
    from harness.plan import Planner, render

    planner = Planner()
    plans = [(planner.plan(recipe), planner.costs(recipe)) for recipe in recipes_of(recipes)]
    if json:
        _print_json({"schema": 1, "plans": [{**plan.as_dict(), "costs": costs.as_dict()} for plan, costs in plans]})
        return
    typer.echo("\n\n".join("\n".join(render(plan, costs)) for plan, costs in plans))


@app.command("list")
@guarded
def list_all(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="recipes|suites|evaluations|runs|models|sources|benchmarks",
            help="One kind of thing.",
            show_default=False,
        ),
    ] = None,
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="paths.results=DIR", help="Where runs are.", show_default=False)
    ] = None,
    json: Json = False,
) -> None:
    """List recipes, suites, evaluations, runs, models, data sources and benchmarks."""
    from harness.cli.inspect import listing, listing_lines

    answer = listing(what, arguments or [])
    if json:
        _print_json(answer)
    else:
        typer.echo("\n".join(listing_lines(answer)))


@app.command()
@guarded
def show(
    name: Annotated[str, typer.Argument(metavar="RECIPE|RUN", help="A recipe, or a run or the beginning of its id.")],
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Overrides.", show_default=False)
    ] = None,
    json: Json = False,
) -> None:
    """Show a recipe with its defaults, or a run."""
    from harness.cli.inspect import shown, shown_lines

    answer = shown(name, arguments or [])
    if json:
        _print_json(answer)
    else:
        typer.echo("\n".join(shown_lines(answer)))


@app.command()
@guarded
def status(arguments: SomeRecipes = None, json: Json = False) -> None:
    """Tell how far runs are. Stages done, step k of n, last loss, evaluations."""
    from harness.cli.status import runs_status, status_lines

    answer = runs_status(arguments or [])
    if json:
        _print_json({"schema": 1, "runs": answer})
    else:
        typer.echo("\n".join(status_lines(answer)))


@app.command()
@guarded
def compare(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN|RECIPE|KEY=VALUE", help="Two runs or more.", show_default=False)
    ],
    json: Json = False,
) -> None:
    """Put finished runs side by side. What differs, paired differences to the first one, targets, time."""
    from harness.cli.run_names import runs_to_compare
    from harness.report.table import to_markdown
    from harness.report.tables.compare import as_json, compare_tables

    compared = compare_tables(runs_to_compare(runs))
    if json:
        _print_json(as_json(compared))
    else:
        typer.echo("\n".join(to_markdown(table) for table in compared))


# --- data ------------------------------------------------------------------------------------------------


@data_app.command("make")
@guarded
def data_make(recipes: Recipes) -> None:
    """Make the data that can be made. `shapes` for a recipe means the data of tiny_regate."""
    from harness.cli.arguments import recipes_of
    from harness.common.progress import Progress
    from harness.data.sources import make_data

    progress = Progress()
    for recipe in recipes_of(["tiny_regate" if argument == "shapes" else argument for argument in recipes]):
        typer.echo(make_data(recipe.data, recipe.paths, recipe.seed, progress))


@data_app.command("check")
@guarded
def data_check(recipes: Recipes) -> None:
    """Read every media file and record anew, and name those that a run could not use."""
    from harness.cli.arguments import recipes_of
    from harness.cli.data import check
    from harness.common.errors import DataError
    from harness.common.progress import Progress

    progress, refused = Progress(), 0
    for recipe in recipes_of(recipes):
        lines, damaged = check(recipe, progress)
        typer.echo("\n".join(lines))
        refused += damaged if recipe.data.damaged == "refuse" else 0
    if refused:
        raise DataError(
            f"{refused} damaged; a run would refuse these data",
            hint="replace them, or leave their samples out with data.damaged=exclude",
        )


def _print_json(value: object) -> None:
    import json

    typer.echo(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False))
