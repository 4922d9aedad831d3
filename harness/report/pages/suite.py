"""What a report says of a suite: arms over seeds, differences paired within a seed. Pure functions of records."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING, Any, Final

from harness.analysis.arms import group_by_arm
from harness.analysis.choices.selection import read_selection, runs_to_replay
from harness.analysis.curves import ARMS, Arm, arm_of, scale_of
from harness.analysis.runs import Run, asked_otherwise, benchmarks_of
from harness.analysis.seeds import spread
from harness.analysis.summary import (
    positions_computed,
    step_speedups,
    targets_computed,
    targets_reduction,
    teacher_seconds,
    train_cpu_seconds,
    train_device_hours,
    train_seconds,
)
from harness.analysis.verdicts import ORDER
from harness.report import table as render
from harness.report.figures.accuracy import panels_of, suite_figure
from harness.report.figures.arms import arms_figure
from harness.report.figures.frontier import frontier_figure
from harness.report.figures.training_loss import suite_loss_figure
from harness.report.pages.html import Block, Page, Pictures, Section, Tabular, Text, Tile
from harness.report.pages.runs import chosen, made_from, provenance
from harness.report.table import Cell, Column, Table
from harness.report.tables.frontier import frontier_table, shapes_table
from harness.report.tables.option_loss import option_loss_table
from harness.report.tables.suites import claims_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from harness.analysis.arms import Arms as Grouped
    from harness.analysis.statistics import Interval
    from harness.config.suite import Claim, Suite

Arms = dict[str, tuple[Run, ...]]
_AGAINST: Final = ("baseline", "baseline_equal_targets", "random")
"""Arms that the others are compared with, where the suite has them."""


def suite_page(suite: str, arms: Arms, definition: Suite | None = None) -> Page:
    """The report of a suite.

    Args:
        definition: of the suite. Without one there are no claims, and the baseline is that of `group_by_arm`.
    """
    runs = [run for members in arms.values() for run in members]
    seeds = sorted({run.seed for run in runs})
    claims = _claims(suite, runs, definition)
    tiles = [Tile("runs", str(len(runs)), f"{len(arms)} arms, seeds {', '.join(map(str, seeds))}")]
    if claims is not None:
        tiles = [*_verdicts(claims), *tiles]
    for benchmark in benchmarks_of(runs):
        scale, _ = scale_of(runs, benchmark)
        for name in ("baseline", "regate"):
            arm = arm_of(name, arms[name], benchmark) if name in arms else None
            if arm is not None and arm.points:
                last = arm.points[-1].accuracy
                note = f"{benchmark}, mean of {len(arm.seeds)}: [{scale * last.low:.1f}, {scale * last.high:.1f}]"
                tiles.append(Tile(arm.label, f"{scale * last.value:.1f}", note))
    shown = [selection for run in runs_to_replay(runs) if (selection := read_selection(run.folder)) is not None]
    lead = "Several seeds of each arm; differences are taken within a seed."
    if definition is not None and definition.description:
        lead = f"{definition.description.strip()} {lead}"
    first = [] if claims is None else [Section("claims", "Claims", (Tabular(_verdict_second(claims)),))]
    sections = [*first, *suite_sections(suite, arms, shown, definition)]
    return Page(f"Suite {suite}", lead, tuple(tiles), tuple(sections), made_from(runs))


def suite_sections(
    name: str, arms: Arms, selections: Sequence[dict[str, Any]], definition: Suite | None = None
) -> list[Section]:
    """Every section of a suite's report but the claims."""
    runs = [run for members in arms.values() for run in members]
    grouped = group_by_arm(name, runs, definition)
    sections = []
    for benchmark in benchmarks_of(runs):
        measured = [arm for key, members in arms.items() if (arm := arm_of(key, members, benchmark)) is not None]
        sections.append(_accuracy(grouped, measured, benchmark, definition.claims if definition else ()))
    sections += _against_flops(grouped, benchmarks_of(runs))
    sections += _losses(arms)
    sections.append(_cost(arms))
    sections += [chosen(selection) for selection in selections]
    return [*sections, _list(arms), *_mixed(runs), provenance(runs[:1])]


def _claims(suite: str, runs: Sequence[Run], definition: Suite | None) -> Table | None:
    """The claims with what decides them; None for a suite that states none, or was asked nothing."""
    benchmarks = benchmarks_of(runs)
    if definition is None or not definition.claims or not benchmarks:
        return None
    return claims_table(group_by_arm(suite, runs, definition), definition.claims, benchmarks)


def _verdict_second(claims: Table) -> Table:
    """The table with the verdict beside the claim: a window that is too narrow for all of it shows both."""
    first, *others, verdict = range(len(claims.columns))
    order = (first, verdict, *others)
    rows = tuple(tuple(row[place] for place in order) for row in claims.rows)
    return replace(claims, columns=tuple(claims.columns[place] for place in order), rows=rows)


def _verdicts(claims: Table) -> list[Tile]:
    """How many claims came to each verdict."""
    verdicts = [row[-1].text for row in claims.rows]
    counted = {word: verdicts.count(word) for word in ORDER if word in verdicts}
    return [Tile(f"claims {word}", str(number), f"of {len(verdicts)}") for word, number in counted.items()]


def _accuracy(grouped: Grouped, arms: Sequence[Arm], benchmark: str, claims: Sequence[Claim]) -> Section:
    name = grouped.name
    runs = [run for arm in arms for run in arm.runs]
    scale, _ = scale_of(runs, benchmark)
    main = [arm for arm in arms if arm.name in ARMS]
    blocks: list[Block] = []
    dots = arms_figure(grouped, benchmark) if len(arms) > 1 else None
    if dots is not None:
        alt = "; ".join(f"{arm.label}: {_shown(arm.points[-1].accuracy, scale)}" for arm in arms if arm.points)
        words = f"Each arm on {benchmark} after the last step, and its difference from the baseline within a seed."
        blocks.append(Pictures(((f"{words} {alt}.", dots),), words))
    drawn = [(main or list(arms), "The main arms.")]
    if main and len(main) < len(arms):
        drawn.append((list(arms), "All arms."))
    for shown, words in drawn:
        alt = "; ".join(f"{arm.label}: {_shown(arm.points[-1].accuracy, scale)}" for arm in shown if arm.points)
        figures = tuple(
            (f"Accuracy on {benchmark} at the end. {alt}.", suite_figure(name, shown, benchmark, [which]))
            for which in panels_of(runs)
        )
        blocks.append(Pictures(figures, f"{words} Accuracy on {benchmark} against what had been computed."))
    blocks.append(Tabular(_scores(arms, benchmark, scale)))
    against = [other for key in _AGAINST for other in arms if other.name == key]
    blocks += [Tabular(_against(other, arms, benchmark, scale)) for other in against]
    second = option_loss_table(grouped, claims, benchmark)
    blocks += [] if second is None else [Tabular(second)]
    return Section(f"accuracy-{benchmark}", f"Accuracy on {benchmark}", tuple(blocks))


def _against_flops(grouped: Grouped, benchmarks: Sequence[str]) -> list[Section]:
    """Accuracy against FLOPs on each benchmark, and the arms' FLOPs at the shapes of the paper's models; none with
    fewer than two arms to compare."""
    sections = []
    for benchmark in benchmarks:
        figure, table = frontier_figure(grouped, benchmark), frontier_table(grouped, benchmark)
        if figure is None or table is None:
            continue
        words = f"Accuracy on {benchmark} against the FLOPs of training and teacher."
        front = ", ".join(row[0].text for row in table.rows if row[-1].text)
        shown = Pictures(((f"{words} On the front: {front}.", figure),), words)
        blocks: tuple[Block, ...] = (shown, Tabular(table))
        sections.append(Section(f"frontier-{benchmark}", f"Accuracy on {benchmark} against FLOPs", blocks))
    elsewhere = shapes_table(grouped)
    if sections and elsewhere is not None:
        sections.append(Section("shapes", "FLOPs at 7B shapes", (Tabular(elsewhere),)))
    return sections


def _losses(arms: Arms) -> list[Section]:
    """The loss over the steps of each arm, where ledgers are kept beside the records."""
    figure = suite_loss_figure(arms)
    if figure is None:
        return []
    words = "Loss of the trainings over their steps on one scale, an arm a colour; dense and sparse steps apart."
    note = (
        "Thin: running means of each seed; strong: the mean over an arm's seeds. A sparse step's loss is over the "
        "targets that the gate chose, so only the dense steps compare the arms."
    )
    return [Section("loss", "Loss during the training", (Pictures(((words, figure),), note),))]


def _scores(arms: Sequence[Arm], benchmark: str, scale: float) -> Table:
    seeds = sorted({run.seed for arm in arms for run in arm.runs})
    columns = (
        Column("arm", ("arm",), right=False),
        Column("mean over seeds", ("mean", "low", "high")),
        *(Column(f"seed {seed}", (f"seed_{seed}",)) for seed in seeds),
    )
    rows = []
    for arm in arms:
        values = _by_seed(arm)
        whole = spread(list(values.values())).interval
        cells = [_number(values.get(seed), scale) for seed in seeds]
        rows.append((render.label(arm.label), render.accuracy(whole, scale=scale), *cells))
    notes = (
        "After the last step. [low, high]: 95 % t interval of the mean over seeds, each of which makes anew all that "
        "depends on chance. Arms of one seed share data and starting weights: compare them within a seed, below.",
    )
    return Table(f"suite_{benchmark}", f"{benchmark}, after the last step", columns, tuple(rows), notes)


def _against(other: Arm, arms: Sequence[Arm], benchmark: str, scale: float) -> Table:
    columns = (
        Column("arm", ("arm",), right=False),
        Column(f"minus {other.label}", ("difference", "low", "high")),
        Column("better in", ("better", "seeds")),
    )
    base, others = _by_seed(other), {run.seed: run for run in other.runs}
    rows, left_out = [], []
    for arm in arms:
        scores, runs = _by_seed(arm), {run.seed: run for run in arm.runs}
        both = sorted(scores.keys() & base.keys())
        apart = [seed for seed in both if asked_otherwise(runs[seed], others[seed], benchmark)]
        left_out += [f"{arm.label}, seed {seed}" for seed in apart]
        shared = [scores[seed] - base[seed] for seed in both if seed not in apart]
        if arm.name == other.name or not shared:
            continue
        interval = spread(shared).interval
        better = sum(value > 0 for value in shared)
        count = Cell(f"{better} of {len(shared)} seeds", (better, len(shared)))
        rows.append((render.label(arm.label), render.accuracy(interval, scale=scale, signed=True), count))
    notes = [
        "Paired within a seed, in points; [low, high]: 95 % t interval of the mean difference over seeds. They are "
        "not corrected for the number of arms."
    ]
    if left_out:
        notes.append(f"Left out, because the two were asked otherwise: {'; '.join(left_out)}.")
    title = f"Difference from {other.label}"
    return Table(f"suite_against_{other.name}", title, columns, tuple(rows), tuple(notes))


def _cost(arms: Arms) -> Section:
    columns = (
        Column("arm", ("arm",), right=False),
        Column("seeds", ("seeds",)),
        Column("steps", ("steps",)),
        Column("targets computed", ("targets_computed",)),
        Column("reduction", ("targets_reduction",)),
        Column("positions computed", ("positions_computed",)),
        Column("train time", ("train_seconds",)),
        Column("device-hours", ("train_device_hours",)),
        Column("teacher time", ("teacher_seconds",)),
        Column("step speed-up", ("step_speedup",)),
    )
    rows = []
    for name, runs in arms.items():
        arm = Arm(name, runs, (), ())
        gated = runs[0].gate is not None
        rows.append(
            (
                render.label(arm.label),
                render.count(len(runs)),
                render.count(round(fmean(run.totals["steps"] for run in runs))),
                render.count(targets_computed(runs)),
                render.percent(targets_reduction(runs)) if gated else columns[4].empty(),
                render.count(positions_computed(runs)),
                render.train_time(train_seconds(runs), train_cpu_seconds(runs)),
                _hours(train_device_hours(runs)),
                _teacher(runs, columns[8]),
                render.ratio(step_speedups(runs)) if gated else columns[9].empty(),
            )
        )
    notes = (
        "Targets and positions: means over the seeds; times and step speed-up: medians. The teacher's pass is done "
        "once for a seed's data and shared by its arms.",
    )
    table = Table("suite_cost", "What each arm computed, and what it took", columns, tuple(rows), notes)
    return Section("cost", "Cost", (Tabular(table),))


def _list(arms: Arms) -> Section:
    columns = (
        Column("arm", ("arm",), right=False),
        Column("seed", ("seed",)),
        Column("run", ("run",), right=False),
        Column("train time", ("train_seconds",)),
    )
    rows = tuple(
        (
            render.label(Arm(name, runs, (), ()).label),
            Cell(str(run.seed), (run.seed,)),
            render.label(run.id),
            render.train_time(run.totals["seconds"]["train"], run.totals.get("cpu_seconds")),
        )
        for name, runs in arms.items()
        for run in runs
    )
    return Section("runs", "Runs", (Tabular(Table("suite_runs", "Runs", columns, rows), folded=True),))


def _mixed(runs: Sequence[Run]) -> list[Section]:
    """What makes a suite less than a clean comparison: runs of different code, packages or machines."""
    notes = []
    for label, key in (("code", "git"), ("packages", "packages"), ("machine", "hardware")):
        distinct = {repr(sorted((run.record["provenance"].get(key) or {}).items(), key=str)) for run in runs}
        if len(distinct) > 1:
            notes.append(f"The runs are of {len(distinct)} different states of the {label}.")
    return [Section("mixed", "Not alike in all runs", (Text(tuple(notes)),))] if notes else []


def _by_seed(arm: Arm) -> Mapping[int, float]:
    """The last value of each seed."""
    return {run.seed: points[-1].accuracy.value for run, points in zip(arm.runs, arm.seeds, strict=True)}


def _number(value: float | None, scale: float) -> Cell:
    return Cell(render.MISSING, (None,)) if value is None else Cell(f"{scale * value:.1f}", (value,))


def _shown(interval: Interval, scale: float) -> str:
    return render.accuracy(interval, scale=scale).text


def _teacher(runs: Sequence[Run], column: Column) -> Cell:
    if all(run.record["reference"] is None for run in runs):
        return column.empty()
    return render.duration(teacher_seconds(runs))


def _hours(value: float) -> Cell:
    return Cell(f"{value:.3g}", (value,))


__all__ = ["suite_page", "suite_sections"]
