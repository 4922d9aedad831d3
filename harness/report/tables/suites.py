"""A suite: arms over seeds. Every difference is taken within a seed, and the seeds are the units of the intervals."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from harness.analysis import verdicts
from harness.analysis.arms import EQUAL_TARGETS, Arms, group_by_arm
from harness.analysis.runs import Run, answer_count, benchmarks_of, scoring_of, shown_scale, surroundings
from harness.analysis.seeds import Spread, p_value, seeds_to_detect, spread, two_level_difference
from harness.analysis.statistics import holm
from harness.analysis.summary import (
    positions_computed,
    step_speedups,
    targets_computed,
    targets_reduction,
    train_cpu_seconds,
    train_seconds,
)
from harness.analysis.time_to_target import over_seeds
from harness.report import table as render
from harness.report.table import Cell, Column, Table
from harness.report.tables.common import attempts_notes
from harness.report.tables.frontier import frontier_table, shapes_table
from harness.report.tables.option_loss import option_loss_table
from harness.report.tables.time_to_target import KINDS, NOTES, SHOWN, reaches

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from harness.analysis.runs import Evaluation
    from harness.config.suite import Claim, Suite
    from harness.report.tables.common import Row

_ARM: Final = Column("arm", ("arm",), right=False)
_SEEDS: Final = Column("seeds", ("seeds",))
_UNREAD: Final = ("guessed", "unparsable")
"""Counts of answers that stand beside a comparison: a guess is no evidence of either arm."""


def suite_tables(name: str, runs: Sequence[Run], suite: Suite | None = None) -> list[Table]:
    """The tables of one suite: arms, abilities, the second measure, time to target, accuracy against FLOPs, FLOPs at
    other shapes, claims, and every run.

    Args:
        suite: its definition. Without one the arms are those of the records, in the order of their names, the
            baseline is the arm without a gate that computed most targets, and there are no claims.

    Raises:
        DataError: two runs of an arm have the same seed, or one was not trained.
    """
    arms = group_by_arm(name, runs, suite)
    benchmarks = benchmarks_of(runs)
    tables = [arms_table(arms, benchmarks)]
    tables += [abilities_table(arms, benchmark) for benchmark in benchmarks]
    claims = suite.claims if suite is not None else ()
    tables += [table for benchmark in benchmarks if (table := option_loss_table(arms, claims, benchmark))]
    tables += [table for benchmark in benchmarks if (table := reach_table(arms, benchmark))]
    tables += [table for benchmark in benchmarks if (table := frontier_table(arms, benchmark))]
    tables += [table for table in (shapes_table(arms),) if table is not None]
    if claims:
        tables.append(claims_table(arms, claims, benchmarks))
    return [*tables, runs_table(arms, benchmarks)]


def seeds_table(arms: Arms) -> Table:
    """Recipes that were run with several seeds and belong to no suite, as one table of arms."""
    benchmarks = benchmarks_of(run for by_seed in arms.runs.values() for run in by_seed.values())
    return replace(arms_table(arms, benchmarks), name=f"seeds_{arms.name}", title=f"Seeds of {arms.name}")


def arms_table(arms: Arms, benchmarks: Sequence[str]) -> Table:
    """The main result of a suite: one row an arm."""
    columns = [
        _ARM,
        _SEEDS,
        Column("targets computed", ("targets_computed",)),
        Column("reduction", ("targets_reduction",)),
        Column("positions computed", ("positions_computed",)),
        Column("train time", ("train_seconds",)),
        Column("step speed-up", ("step_speedup",)),
    ]
    for name in benchmarks:
        columns.append(Column(f"{name}: mean ± sd", _names(name, "mean", "sd", "low", "high")))
        columns.append(
            Column("- baseline", _names(f"{name}_difference", "", "low", "high", "least", "most", "seeds"))
        )
        columns.append(Column("p (Holm)", _names(f"{name}_difference", "p", "p_holm")))
        columns.append(Column("- equal targets", _names(f"{name}_equal_targets", "", "low", "high")))
    tests = {name: _baseline_tests(arms, name) for name in benchmarks}
    rows = []
    for arm, by_seed in arms.runs.items():
        runs = list(by_seed.values())
        gated = any(run.gate for run in runs)
        cells = [
            _arm_cell(arms, arm),
            render.count(len(runs)),
            render.count(targets_computed(runs)),
            render.percent(targets_reduction(runs)) if gated else columns[3].empty(),
            render.count(positions_computed(runs)),
            render.train_time(train_seconds(runs), train_cpu_seconds(runs)),
            render.ratio(step_speedups(runs)) if gated else columns[6].empty(),
        ]
        for name in benchmarks:
            cells += _score_cells(arms, arm, name, tests[name].get(arm))
        rows.append(tuple(cells))
    notes = (
        "Targets and positions computed: mean over the seeds. Train time: median wall seconds of the training clock. "
        "Step speed-up: median over the seeds of dense over sparse step within a run.",
        "mean ± sd: over the seeds; [low, high]: 95 % t interval over the seeds. - baseline: paired by seed, in "
        f"points, with its t interval and, in brackets, the least and the greatest of a seed; the baseline is "
        f"{arms.baseline}. - equal targets: the same against the arm without a gate whose targets computed are "
        f"within {100 * EQUAL_TARGETS:g} %.",
        "p: two-sided, Student's t over the seeds, of the difference to the baseline; in brackets corrected for the "
        "number of arms that are compared with it (Holm). The differences at equal targets are not corrected.",
        *_seed_notes(arms),
    )
    return Table(f"suite_{arms.name}", f"Suite {arms.name}: arms", tuple(columns), tuple(rows), notes)


def abilities_table(arms: Arms, benchmark: str) -> Table:
    """Each ability of each arm, over the seeds."""
    abilities: dict[str, bool] = {}
    for by_seed in arms.runs.values():
        for run in by_seed.values():
            abilities |= {
                task["ability"]: task["in_mean"] for task in (run.last(benchmark) or {"tasks": ()})["tasks"]
            }
    columns = (_ARM, *(Column(name, _names(name, "", "sd")) for name in abilities))
    scale = _scale(arms, benchmark)
    rows = []
    for arm in arms.runs:
        spreads = [_spread(arms.scores(arm, benchmark, ability)) for ability in abilities]
        rows.append((_arm_cell(arms, arm), *(_mean_sd(seed_spread, scale) for seed_spread in spreads)))
    left_out = [name for name, counted in abilities.items() if not counted]
    notes = ["mean ± standard deviation over the seeds."]
    notes += [f"Not in the mean: {', '.join(left_out)}."] if left_out else []
    title = f"Suite {arms.name}: abilities of {benchmark}"
    return Table(f"suite_{arms.name}_abilities_{benchmark}", title, columns, tuple(rows), tuple(notes))


def reach_table(arms: Arms, benchmark: str) -> Table | None:
    """What each arm needs to reach the baseline's final accuracy, over the seeds; None without items or baseline."""
    columns = (
        _ARM,
        Column("reached", ("reached", "seeds")),
        *(Column(title, _names(kind, "", "sd", "least", "most")) for kind, (_, title) in KINDS.items()),
    )
    rows: list[Row] = []
    base = arms.runs.get(arms.baseline, {})
    for arm in (arm for arm in arms.runs if arm != arms.baseline):
        pairs = [(base[seed], run) for seed, run in arms.runs[arm].items() if seed in base]
        by_seed = [crossings for baseline, run in pairs if (crossings := reaches(baseline, run, benchmark))]
        if not by_seed:
            continue
        together = {
            kind: over_seeds([crossings[kind] for crossings in by_seed])
            for kind in KINDS
            if all(kind in crossings for crossings in by_seed)
        }
        first = together["targets"]
        counts = Cell(f"{first.reached} of {first.n}", (first.reached, first.n))
        missing = Cell(render.MISSING, (None,) * 4)
        cells = [_reach_cell(together[kind].spread, kind) if kind in together else missing for kind in KINDS]
        rows.append((_arm_cell(arms, arm, arms.baseline), counts, *cells))
    notes = (
        f"The accuracy of {arms.baseline} after its last step, in the same seed, on the straight line between "
        "evaluated checkpoints: mean ± standard deviation over the seeds [least, most]. Where one seed does not "
        "reach it there is no mean.",
        NOTES[1],
    )
    title = f"Suite {arms.name}: time to target on {benchmark}"
    return Table(f"suite_{arms.name}_target_{benchmark}", title, columns, tuple(rows), notes) if rows else None


_CLAIM_COLUMNS: Final = (
    Column("claim", ("claim",), right=False),
    Column("arms", ("first", "second"), right=False),
    Column("benchmark", ("benchmark",), right=False),
    Column("seeds", ("seeds", "seeds_left_out")),
    Column("difference", tuple(f"difference{end}" for end in ("", "_low", "_high", "_least", "_most"))),
    Column("margin", ("margin",)),
    Column("detectable", ("detectable",)),
    Column("p", ("p",)),
    Column("p (Holm)", ("p_holm",)),
    Column("guessed; not understood", tuple(f"{k}_{side}" for k in _UNREAD for side in ("first", "second"))),
    Column("verdict", ("verdict",), right=False),
)


def claims_table(arms: Arms, claims: Sequence[Claim], benchmarks: Sequence[str]) -> Table:
    """Each claim with the paired difference that decides it, and its verdict."""
    tested = [(claim, benchmark) for claim in claims for benchmark in benchmarks]
    differences = [arms.difference(claim.first, claim.second, benchmark) for claim, benchmark in tested]
    p_values = [
        None if difference is None else p_value(difference, verdicts.bound_of(claim.expect, claim.margin))
        for difference, (claim, _) in zip(differences, tested, strict=True)
    ]
    corrected = iter(holm([p for p in p_values if p is not None]))
    rows = [
        _claim_row(arms, claim, benchmark, difference, p, None if p is None else next(corrected))
        for (claim, benchmark), difference, p in zip(tested, differences, p_values, strict=True)
    ]
    notes = (
        "Difference: first minus second, paired by seed, in points: mean, 95 % t interval over the seeds, and the "
        "least and the greatest of a seed. A seed in which the two arms were asked otherwise (prompts, questions, "
        "frames or limit) is left out and counted. detectable: the smallest true difference that so many seeds find "
        "with 80 % power (noncentral t).",
        "p: two-sided, Student's t over the seeds, of the difference against 0, or against minus the margin. Holm: "
        "corrected for the number of claims in this table. The verdicts go by each claim's own interval.",
        "guessed; not understood: answers of the first arm : of the second, over the paired seeds.",
        *(verdicts.RULES[rule] for rule in sorted({claim.expect for claim in claims})),
    )
    facts = [_claim_facts(arms, claim, benchmark) for claim, benchmark in tested]
    title = f"Suite {arms.name}: claims"
    return Table(f"suite_{arms.name}_claims", title, _CLAIM_COLUMNS, tuple(rows), notes, facts=facts)


def _claim_row(
    arms: Arms, claim: Claim, benchmark: str, difference: Spread | None, p: float | None, p_holm: float | None
) -> Row:
    scale, columns = _scale(arms, benchmark), _CLAIM_COLUMNS
    sd = difference.sd if difference else None
    smallest = seeds_to_detect(sd, difference.n) if difference and sd is not None else None
    interval = difference.interval if difference else None
    return (
        Cell(claim.text, (claim.id,), runs=_arm_cell(arms, claim.first, claim.second).runs),
        Cell(f"{claim.first} - {claim.second}", (claim.first, claim.second)),
        render.label(benchmark),
        _seeds_cell(arms, claim, benchmark, difference.n if difference else 0),
        _difference_cell(difference, scale, columns[4]),
        Cell(f"{scale * claim.margin:.1f}", (claim.margin,)) if claim.margin else columns[5].empty(),
        columns[6].missing() if smallest is None else Cell(f"{scale * smallest:.1f}", (smallest,)),
        columns[7].missing() if p is None else Cell(f"{p:.2g}", (p,)),
        columns[8].missing() if p_holm is None else Cell(f"{p_holm:.2g}", (p_holm,)),
        _answers_cell(arms, claim, benchmark),
        render.label(verdicts.of_claim(claim.expect, interval, margin=claim.margin)),
    )


def _train_time(run: Run) -> Cell:
    wall, cpu = run.totals["seconds"]["train"], run.totals.get("cpu_seconds")
    return Cell(render.train_time(wall, cpu).text, (wall, cpu))


def runs_table(arms: Arms, benchmarks: Sequence[str]) -> Table:
    """Every run of the suite, so that each number above can be traced to its record. Written, not printed."""
    columns = (
        Column("run", ("run",), right=False),
        _ARM,
        Column("seed", ("seed",)),
        Column("targets computed", ("targets_computed",)),
        Column("positions computed", ("positions_computed",)),
        Column("train time", ("train_seconds", "train_cpu_seconds")),
        *(Column(name, (name,)) for name in benchmarks),
    )
    rows = []
    for arm, by_seed in arms.runs.items():
        for seed, run in by_seed.items():
            counts = run.totals["counts"]
            scores = [arms.scores(arm, name).get(seed) for name in benchmarks]
            rows.append(
                (
                    render.label(run.id, run.id),
                    render.label(arm),
                    Cell(str(seed), (seed,)),
                    render.count(counts["scored"]),
                    render.count(counts["active"]),
                    _train_time(run),
                    *(
                        column.missing() if value is None else Cell(f"{_scale(arms, name) * value:.1f}", (value,))
                        for column, name, value in zip(columns[6:], benchmarks, scores, strict=True)
                    ),
                )
            )
    members = [run for by_seed in arms.runs.values() for run in by_seed.values()]
    notes = ("Each row is the record results/runs/<run>/record.json.", *attempts_notes(members))
    return Table(f"suite_{arms.name}_runs", f"Suite {arms.name}: runs", columns, tuple(rows), notes, printed=False)


def _arm_cell(arms: Arms, *names: str) -> Cell:
    """The first arm's name, and the runs of all of them."""
    ids = [run.id for name in names for run in arms.runs.get(name, {}).values()]
    return render.label(names[0], *ids)


def _baseline_tests(arms: Arms, benchmark: str) -> dict[str, tuple[float, float]]:
    """arm -> p value of its difference to the baseline, as it is and corrected for the number of arms."""
    differences = {arm: arms.difference(arm, arms.baseline, benchmark) for arm in arms.runs if arm != arms.baseline}
    p_values = {
        arm: p for arm, difference in differences.items() if difference and (p := p_value(difference)) is not None
    }
    return dict(zip(p_values, zip(p_values.values(), holm(list(p_values.values())), strict=True), strict=True))


def _score_cells(arms: Arms, arm: str, benchmark: str, test: tuple[float, float] | None) -> list[Cell]:
    """Mean with spread, difference to the baseline, its p values, difference to the arm at equal targets."""
    scale = _scale(arms, benchmark)
    seed_spread = _spread(arms.scores(arm, benchmark))
    if seed_spread is None:
        return [Cell(render.MISSING, (None,) * width) for width in (4, 6, 2, 3)]
    text = _mean_sd(seed_spread, scale).text
    if seed_spread.low is not None and seed_spread.high is not None:
        text += f" [{scale * seed_spread.low:.1f}, {scale * seed_spread.high:.1f}]"
    cells = [Cell(text, (seed_spread.mean, seed_spread.sd, seed_spread.low, seed_spread.high))]
    if arm == arms.baseline:
        return [*cells, *(Cell("", ("",) * width) for width in (6, 2, 3))]
    columns = Column("", ("",) * 5), Column("", ("",) * 3)
    against = arms.difference(arm, arms.baseline, benchmark)
    cell = _difference_cell(against, scale, columns[0])
    cells.append(Cell(cell.text, (*cell.values, against.n if against else 0)))
    shown = render.MISSING if test is None else f"{test[0]:.2g} ({test[1]:.2g})"
    cells.append(Cell(shown, test or (None, None)))
    equal = arms.equal_targets(arm)
    if equal is None:
        return [*cells, columns[1].empty()]
    other = arms.difference(arm, equal, benchmark)
    return [*cells, render.accuracy(other.interval if other else None, scale=scale, signed=True)]


def _claim_facts(arms: Arms, claim: Claim, benchmark: str) -> dict[str, Any]:
    """The bootstrap over seeds and items, as a check on the t interval; too narrow for few seeds."""
    left_out = arms.asked_otherwise(claim.first, claim.second, benchmark)
    first = {seed: units for seed, units in arms.units(claim.first, benchmark).items() if seed not in left_out}
    second = arms.units(claim.second, benchmark)
    evaluation = _any_evaluation(arms, benchmark)
    both = two_level_difference(scoring_of(evaluation), second, first) if evaluation else None
    bootstrap = None if both is None else {"value": both.value, "low": both.low, "high": both.high, "seeds": both.n}
    return {"claim": claim.id, "benchmark": benchmark, "bootstrap_over_seeds_and_items": bootstrap}


def _seeds_cell(arms: Arms, claim: Claim, benchmark: str, paired: int) -> Cell:
    """The seeds that count, and those that do not because the two arms were asked otherwise."""
    left_out = len(arms.asked_otherwise(claim.first, claim.second, benchmark))
    return Cell(f"{paired} ({left_out} left out)" if left_out else str(paired), (paired, left_out))


def _answers_cell(arms: Arms, claim: Claim, benchmark: str) -> Cell:
    """Answers that were guessed or not understood, of both arms, over the seeds that are paired."""
    left_out = arms.asked_otherwise(claim.first, claim.second, benchmark)
    pairs = [
        (run.last(benchmark), arms.runs[claim.second][seed].last(benchmark))
        for seed, run in arms.runs.get(claim.first, {}).items()
        if seed in arms.runs.get(claim.second, {}) and seed not in left_out
    ]
    sums: list[int | None] = []
    for kind in _UNREAD:
        for side in (0, 1):
            counts = [answer_count(pair[side], kind) for pair in pairs]
            known = [count for count in counts if count is not None]
            sums.append(sum(known) if pairs and len(known) == len(counts) else None)
    shown = [render.MISSING if value is None else str(value) for value in sums]
    return Cell(f"{shown[0]} : {shown[1]}; {shown[2]} : {shown[3]}", tuple(sums))


def _seed_notes(arms: Arms) -> list[str]:
    """Seeds that an arm lacks, and what besides its recipe differs between runs of the suite."""
    seeds = {seed for by_seed in arms.runs.values() for seed in by_seed}
    notes = [
        f"{arm}: no run with seed {', '.join(map(str, sorted(seeds - by_seed.keys())))}; differences use the others."
        for arm, by_seed in arms.runs.items()
        if seeds - by_seed.keys()
    ]
    runs = [run for by_seed in arms.runs.values() for run in by_seed.values()]
    other = sorted({name for run in runs[1:] for name in surroundings(runs[0], run)} - {"data", "weights"})
    if other:
        notes.append(f"Runs of this suite differ in {', '.join(other)}; see their records.")
    base = arms.runs.get(arms.baseline, {})
    for arm, by_seed in arms.runs.items():
        for benchmark in benchmarks_of([*by_seed.values(), *base.values()]):
            left_out = arms.asked_otherwise(arm, arms.baseline, benchmark)
            if left_out:
                reasons = ", ".join(sorted({reason for reasons in left_out.values() for reason in reasons}))
                notes.append(
                    f"{arm}: asked otherwise on {benchmark} than the baseline ({reasons}) with seed "
                    f"{', '.join(map(str, left_out))}; left out of the differences."
                )
    return notes


def _any_evaluation(arms: Arms, benchmark: str) -> Evaluation | None:
    evaluations = (run.last(benchmark) for by_seed in arms.runs.values() for run in by_seed.values())
    return next((entry for entry in evaluations if entry), None)


def _scale(arms: Arms, benchmark: str) -> float:
    evaluation = _any_evaluation(arms, benchmark)
    return shown_scale(evaluation) if evaluation else 100.0


def _spread(scores: Mapping[int, float]) -> Spread | None:
    return spread(list(scores.values())) if scores else None


def _mean_sd(seed_spread: Spread | None, scale: float) -> Cell:
    if seed_spread is None:
        return Cell(render.MISSING, (None, None))
    sd = "" if seed_spread.sd is None else f" ± {scale * seed_spread.sd:.1f}"
    return Cell(f"{scale * seed_spread.mean:.1f}{sd}", (seed_spread.mean, seed_spread.sd))


def _difference_cell(difference: Spread | None, scale: float, column: Column) -> Cell:
    if difference is None:
        return column.missing()
    ends = f" ({scale * difference.least:+.1f} to {scale * difference.most:+.1f})" if difference.n > 1 else ""
    interval = difference.interval
    text = render.accuracy(interval, scale=scale, signed=True, value=difference.mean).text
    return Cell(text + ends, (difference.mean, difference.low, difference.high, difference.least, difference.most))


def _reach_cell(amounts: Spread | None, kind: str) -> Cell:
    if amounts is None:
        return Cell(render.NOT_REACHED, (float("inf"), None, None, None))
    show = SHOWN[kind]
    sd = "" if amounts.sd is None else f" ± {show(amounts.sd).text}"
    text = f"{show(amounts.mean).text}{sd} [{show(amounts.least).text}, {show(amounts.most).text}]"
    return Cell(text, (amounts.mean, amounts.sd, amounts.least, amounts.most))


def _names(stem: str, *ends: str) -> tuple[str, ...]:
    return tuple(f"{stem}_{end}" if end else stem for end in ends)


__all__ = ["claims_table", "seeds_table", "suite_tables"]
