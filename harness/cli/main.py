"""The command line. Verbs are thin: each loads recipes, calls one part, and prints what it answers.

stdout carries the answer, stderr the progress. An argument with `=` in it that is not a file overrides a recipe key
and goes through the same checks as the file; no option repeats a recipe field. What a verb needs is imported inside
it, so that `harness --help` answers at once.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from harness.common.exits import guarded
from harness.common.imports import uncollected
from harness.common.lines import fitted
from harness.common.streams import spell_what_is_missing
from harness.common.threads import settle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from harness.common.errors import HarnessError
    from harness.training.launching.nodes import Coordinator


def _examples(*commands: str) -> str:
    """The end of a verb's help: commands that can be given as they stand."""
    return "\b\n" + "\n".join(["Examples:", *(f"  {command}" for command in commands)])


def _shipped(beginning: str) -> list[str]:
    """Names of shipped documents, for the shell's completion."""
    from harness.config.load import EVALUATION, RECIPE, SUITE, shipped

    return [name for kind in (RECIPE, SUITE, EVALUATION) for name in shipped(kind) if name.startswith(beginning)]


_HELP = {"help_option_names": ["-h", "--help"]}
app = typer.Typer(
    name="harness",
    context_settings=_HELP,
    help="Fine-tune multimodal LLMs with and without ReGATE, and measure what it saves and what it costs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    epilog="Exit codes: 0 done, 1 the run failed, 2 usage or recipe, 3 environment, 4 data, 5 stale results, "
    "75 stopped (the same command resumes).",
)
data_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Make and check data sets.")
app.add_typer(data_app, name="data")

_RECIPES = "Recipe files or names of shipped recipes, and key=value overrides (gate.keep_ratio=0.25)."
_SOME = "As for `run`; without a recipe, everything in the results folder (paths.results=... names another)."
Recipes = Annotated[
    list[str],
    typer.Argument(metavar="RECIPE|KEY=VALUE", help=_RECIPES, show_default=False, autocompletion=_shipped),
]
SomeRecipes = Annotated[
    list[str] | None,
    typer.Argument(metavar="RECIPE|KEY=VALUE", help=_SOME, show_default=False, autocompletion=_shipped),
]
_NAMED = "Runs (an id or its beginning), suites or recipes, and key=value; without a name, all of the results folder."
Named = Annotated[
    list[str] | None, typer.Argument(metavar="RUN|SUITE|RECIPE|KEY=VALUE", help=_NAMED, show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]


def main() -> None:
    """The `harness` command."""
    settle()  # before anything loads torch
    spell_what_is_missing()
    app(prog_name="harness")


def _version(wanted: bool) -> None:
    if wanted:
        import regate

        _echo(regate.__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    return


# --- the work --------------------------------------------------------------------------------------------


@app.command(
    epilog=_examples(
        "harness run tiny_baseline tiny_regate",
        "harness run suites/tiny_claim",
        "harness run suites/tiny_claim arms=baseline,regate seeds=0,1",
        "harness run tiny_regate gate.keep_ratio=0.25 name=quarter",
    ),
)
@guarded
def run(recipes: Recipes) -> None:
    """Do everything: prepare, reference, train, eval, tables, report. What is there and current is not repeated."""
    from harness.cli.arguments import recipes_to_run
    from harness.cli.run_names import known_suites
    from harness.common.progress import Progress
    from harness.plan import Planner

    def work(others: Coordinator | None) -> None:
        planner = Planner()
        loaded = recipes_to_run(recipes, planner)
        with uncollected():
            from harness import pipeline
        from harness.report.terminal import labelled

        closings = pipeline.run(loaded, Progress(), known_suites(recipes), planner=planner, others=others)
        _echo("\n\n".join(map(labelled, closings)))

    _on_every_node(work)


@app.command(epilog=_examples("harness prepare tiny_regate"))
@guarded
def prepare(recipes: Recipes) -> None:
    """Make the data and weights that can be made. What you have to supply yourself is named."""
    _stage(recipes)


@app.command(epilog=_examples("harness reference videollama2_regate"))
@guarded
def reference(recipes: Recipes) -> None:
    """Compute the teacher's loss on every target. It is done once for a data set (Eq. 1)."""
    _stage(recipes, "reference")


@app.command(epilog=_examples("harness train tiny_regate seed=1"))
@guarded
def train(recipes: Recipes) -> None:
    """Fine-tune, after the reference losses. A stopped training goes on from its newest checkpoint."""
    _stage(recipes, "train")


@app.command(
    "eval",
    epilog=_examples(
        "harness eval tiny_regate",
        "harness eval tiny_regate-1a2b 'evaluate.benchmarks=[{file: my_eval.json}]'",
        "harness eval evaluate/videollama2_official limit=50",
    ),
)
@guarded
def evaluate(recipes: Recipes) -> None:
    """Score the kept models of a training, or a model as it is (`evaluate/...`), with lmms-eval.

    A finished run, named by its id, is asked other benchmarks without another training.
    """
    from harness.cli.arguments import evaluations_apart, split
    from harness.cli.more_evaluations import trainings_apart
    from harness.common.progress import Progress
    from harness.config.load import EVALUATION, load

    names, runs_named = evaluations_apart(recipes)
    trainings, runs_named = ([], runs_named) if names else trainings_apart(runs_named)
    if trainings:
        _ask_more(trainings, runs_named)
        return
    runs, overrides = split(runs_named)
    as_they_are = [load(EVALUATION, name, overrides) for name in names]
    if runs or not as_they_are:
        _stage(runs_named, "evaluate")
    if as_they_are:
        from harness.evaluation.standalone import evaluate_standalone

        def work(others: Coordinator | None) -> None:
            for recipe in as_they_are:
                _echo(evaluate_standalone(recipe, Progress(), nodes=others))

        _on_every_node(work)


def _stage(arguments: list[str], name: str | None = None) -> None:
    """One stage of each recipe, and then how far its run is. All are checked before torch is imported."""
    from harness.cli.arguments import recipes_to_run
    from harness.cli.status import run_status, status_lines
    from harness.common.progress import Progress
    from harness.plan import Planner

    def work(others: Coordinator | None) -> None:
        planner, progress = Planner(), Progress()
        recipes = recipes_to_run(arguments, planner)
        with uncollected():
            from harness import pipeline

        for recipe in recipes:
            run_dir = pipeline.run_stage(recipe, name, progress, planner, others)
            _say(status_lines([run_status(run_dir)]))

    _on_every_node(work)


def _ask_more(trainings: list[Path], overrides: list[str]) -> None:
    """Score the kept models of finished trainings on other benchmarks. All are checked before torch is imported."""
    from harness.cli.more_evaluations import asked_more
    from harness.cli.status import run_status, status_lines
    from harness.common.progress import Progress

    recipes = [asked_more(folder, overrides) for folder in trainings]

    def work(others: Coordinator | None) -> None:
        with uncollected():
            from harness import pipeline

        for recipe, asked in recipes:
            run_dir = pipeline.evaluate_more(recipe, asked, Progress(), others)
            _say(status_lines([run_status(run_dir)]))

    _on_every_node(work)


def _on_every_node(work: Callable[[Coordinator | None], None]) -> None:
    """Do it once for all nodes that this command was started on; the others' processes end as node 0 does."""
    from harness.common.progress import Progress
    from harness.training.launching.every_node import on_every_node

    code = on_every_node(work, Progress().say)
    if code:
        raise typer.Exit(code)


@app.command(
    epilog=_examples(
        "harness tables",
        "harness tables --all",
        "harness tables paths.results=results/evidence/tiny_claim --check",
    ),
)
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
    from harness.analysis.runs import load_runs
    from harness.cli.arguments import results_folder
    from harness.cli.run_names import earlier_records, known_suites, left_out
    from harness.report import tables as report_tables
    from harness.report.figures import build as figures
    from harness.report.tables.compare import as_json
    from harness.report.terminal import to_terminal

    results, suites = results_folder(arguments or []), known_suites(arguments or [])
    note = earlier_records(results)
    if note:
        typer.echo(note, err=True)
    if check:
        files = report_tables.check_tables(results, suites)
        if json:
            _print_json({"schema": 1, "current": [str(path) for path in files]})
            return
        _echo(f"{len(files)} files below {results / 'tables'} are what the records give")
        return
    problems: list[HarnessError] = []
    finished = load_runs(results, problems.append)
    built = report_tables.make_tables(results, suites, without_runs=everything, finished=finished)
    report_tables.write_tables(built, results)
    figures.build_figures(results, definitions=suites, finished=finished)
    if json:
        _print_json(as_json([table for table in built if everything or table.printed]))
    else:
        shown = [table for table in built if everything or table.printed]
        left = "" if everything else report_tables.unprinted(built)
        _echo(to_terminal(shown, unprinted=left), nl=False, color=True)
    if problems:
        raise left_out(problems)


@app.command(
    "figures",
    epilog=_examples(
        "harness figures tiny_baseline tiny_regate",
        "harness figures suites/tiny_claim --draw baseline --draw regate",
        "harness figures tiny_regate --attended",
    ),
)
@guarded
def draw_figures(
    arguments: Named = None,
    draw: Annotated[
        list[str] | None, typer.Option("--draw", metavar="ARM", help="Arm of a suite to draw; may be repeated.")
    ] = None,
    attention: Annotated[
        bool, typer.Option("--attended", help="Read where the kept models look, which loads them, and draw it.")
    ] = False,
) -> None:
    """Draw accuracy curves, reference losses and elided words. The files are named."""
    from harness.cli.report import make_figures
    from harness.common.progress import Progress

    _say(map(str, make_figures(arguments or [], draw or [], Progress(), attention=attention)))


@app.command(epilog=_examples("harness report tiny_regate"))
@guarded
def report(arguments: Named = None) -> None:
    """Write one HTML file of a run, a pair, a suite or several runs. It needs no server, network or scripts."""
    from harness.cli.report import make_reports
    from harness.common.progress import Progress

    _say(map(str, make_reports(arguments or [], Progress())))


# --- reading ---------------------------------------------------------------------------------------------


@app.command(epilog=_examples("harness validate my_recipe.yaml train.steps=500"))
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
        _echo(f"{recipe.name}: in order, run {recipe.run_id}")


@app.command(
    epilog=_examples(
        "harness plan videollama2_regate",
        "harness plan videollama2_regate devices.processes=8 --json",
    ),
)
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
    _say("\n\n".join("\n".join(render(plan, costs)) for plan, costs in plans).split("\n"))


@app.command("list", epilog=_examples("harness list", "harness list benchmarks --json"))
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
        _say(listing_lines(answer))


@app.command(
    epilog=_examples(
        "harness show tiny_regate",
        "harness show tiny_regate-1a2b",
        "harness show tiny_regate-1a2b shapes_colour/colour/000000",
    ),
)
@guarded
def show(
    name: Annotated[str, typer.Argument(metavar="RECIPE|RUN", help="A recipe, or a run or the beginning of its id.")],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="ITEM|KEY=VALUE", help="An item of a run; overrides.", show_default=False),
    ] = None,
    json: Json = False,
) -> None:
    """Show a recipe with its defaults, or a run; with an item, ask that item again and show both answers."""
    from harness.cli.arguments import split
    from harness.cli.inspect import shown, shown_lines

    items, overrides = split(arguments or [])
    if len(items) == 1:
        from harness.cli.items.show_item import asked_again, asked_lines
        from harness.common.progress import Progress

        answer, lines = asked_again(name, items[0], overrides, Progress()), asked_lines
    else:
        answer, lines = shown(name, arguments or []), shown_lines
    if json:
        _print_json(answer)
    else:
        _say(lines(answer))


@app.command(epilog=_examples("harness trace accuracy_shapes 1 mean"))
@guarded
def trace(
    table: Annotated[str, typer.Argument(metavar="TABLE", help="Name of a table, as its file is called.")],
    row: Annotated[str, typer.Argument(metavar="ROW", help="Words that name the row, or its number from 1.")],
    column: Annotated[str, typer.Argument(metavar="COLUMN", help="Heading of the column, or its name in CSV.")],
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="SUITE|KEY=VALUE", help="Overrides, suites.", show_default=False)
    ] = None,
    item: Annotated[
        str | None, typer.Option("--item", metavar="KEY", help="Tell this item in full, with its question and clip.")
    ] = None,
    json: Json = False,
) -> None:
    """Follow a number of a table to its runs, their records and the items behind it."""
    from harness.cli.items.trace import traced, traced_lines

    answer = traced(table, row, column, arguments or [], item)
    if json:
        _print_json(answer)
    else:
        _say(traced_lines(answer))


@app.command(epilog=_examples("harness status", "harness status suites/tiny_claim"))
@guarded
def status(arguments: SomeRecipes = None, json: Json = False) -> None:
    """Tell how far runs are. Stages done, step k of n, last loss, evaluations."""
    from harness.cli.status import runs_status, status_lines

    answer = runs_status(arguments or [])
    if json:
        _print_json({"schema": 1, "runs": answer})
    else:
        _say(status_lines(answer))


@app.command(epilog=_examples("harness compare tiny_baseline tiny_regate"))
@guarded
def compare(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN|RECIPE|KEY=VALUE", help="Two runs or more.", show_default=False)
    ],
    json: Json = False,
) -> None:
    """Put finished runs side by side. What differs, paired differences to the first one, targets, time."""
    from harness.cli.run_names import runs_to_compare
    from harness.report.tables.compare import as_json, compare_tables
    from harness.report.terminal import to_terminal

    compared = compare_tables(runs_to_compare(runs))
    if json:
        _print_json(as_json(compared))
    else:
        _echo(to_terminal(compared), nl=False, color=True)


@app.command(epilog=_examples("harness sync", "harness sync tiny_regate"))
@guarded
def sync(arguments: SomeRecipes = None, json: Json = False) -> None:
    """Send to MLflow what it lacks of the runs. Nothing is sent twice; a server that is down is named."""
    from harness.cli.sync import lines, require_sent
    from harness.cli.sync import sync as send

    answer = send(arguments or [])
    if json:
        _print_json({"schema": 1, "runs": answer})
    else:
        typer.echo("\n".join(lines(answer)))
    require_sent(answer)


# --- the first hour --------------------------------------------------------------------------------------


@app.command(epilog=_examples("harness init tiny_regate", "harness init videollama2_regate mine.yaml"))
@guarded
def init(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A shipped recipe, suite or evaluation.", autocompletion=_shipped)
    ],
    file: Annotated[
        str | None, typer.Argument(metavar="FILE", help="The copy; by default its name here.", show_default=False)
    ] = None,
) -> None:
    """Copy a shipped recipe with its comments, to be changed. An existing file is left alone."""
    from harness.cli.start import copy_recipe

    _say(copy_recipe(recipe, file))


@app.command(epilog=_examples("harness doctor", "harness doctor videollama2_regate --json"))
@guarded
def doctor(recipes: SomeRecipes = None, json: Json = False) -> None:
    """Look at this machine: what a run needs and finds here. Exit 3 where something fails, with what mends it."""
    from harness.cli.doctor import examine, render
    from harness.common.exits import ENVIRONMENT

    checks = examine(recipes or [])
    failed = any(check.state == "fail" for check in checks)
    if json:
        _print_json({"schema": 1, "ok": not failed, "checks": [check.as_dict() for check in checks]})
    else:
        _say(render(checks))
    if failed:
        raise typer.Exit(ENVIRONMENT)


@app.command(epilog=_examples("harness schema", "harness schema suite > suite.json"))
@guarded
def schema(
    kind: Annotated[
        str, typer.Argument(metavar="recipe|suite|evaluation", help="Of which documents.", show_default=False)
    ] = "recipe",
) -> None:
    """Print the JSON Schema of recipes, which editors check and complete by."""
    from harness.cli.start import schema_of

    _print_json(schema_of(kind))


# --- data ------------------------------------------------------------------------------------------------


@data_app.command("make", epilog=_examples("harness data make tiny_regate"))
@guarded
def data_make(recipes: Recipes) -> None:
    """Make the data that can be made. `shapes` for a recipe means the data of tiny_regate."""
    from harness.cli.arguments import recipes_of, require_folders
    from harness.common.progress import Progress
    from harness.data.sources import make_data

    progress = Progress()
    loaded = recipes_of(["tiny_regate" if argument == "shapes" else argument for argument in recipes])
    require_folders(loaded)
    for recipe in loaded:
        _echo(make_data(recipe.data, recipe.paths, recipe.seed, progress))


@data_app.command("check", epilog=_examples("harness data check videochat2_regate"))
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
        _say(lines)
        refused += damaged if recipe.data.damaged == "refuse" else 0
    if refused:
        raise DataError(
            f"{refused} damaged; a run would refuse these data",
            hint="replace them, or leave their samples out with data.damaged=exclude",
        )


@data_app.command("show", epilog=_examples("harness data show tiny_regate"))
@guarded
def data_show(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file or the name of a shipped recipe.")],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="SAMPLE|KEY=VALUE", help="Its key or id (default: the first), and overrides."),
    ] = None,
) -> None:
    """Show one sample as the model gets it. Pictures, tokens by kind, what is learned, what the gate would keep."""
    from harness.cli.arguments import recipes_of, split
    from harness.cli.show_sample import show_sample
    from harness.common.errors import RecipeError
    from harness.common.progress import Progress

    keys, overrides = split(arguments or [])
    (loaded, *more) = recipes_of([recipe, *overrides])
    if more or len(keys) > 1:
        raise RecipeError("one recipe and one sample are shown at a time")
    _echo("\n".join(show_sample(loaded, keys[0] if keys else None, Progress())))


def _say(lines: Iterable[str]) -> None:
    """Lines for a person, no longer than the terminal is wide."""
    _echo(fitted(lines))


def _echo(text: object, *, nl: bool = True, color: bool | None = None) -> None:
    """To standard output as it is: left to itself, click writes UTF-8 where the terminal asks for ASCII."""
    typer.echo(text, file=sys.stdout, nl=nl, color=color)


def _print_json(value: object) -> None:
    import json

    _echo(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False))
