"""Figures: pure functions of the records, the item files, selection.json, needed_words.json and
attention.json, as SVG and PDF (text stays text), PNG and HTML.

Drawn with matplotlib's Agg canvas and no global state of it; the same results give the same bytes with the same
matplotlib.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.analysis.arms import group_by_arm
from harness.analysis.attention.study import read_attention
from harness.analysis.choices.needed_words import read_needed
from harness.analysis.choices.selection import read_selection
from harness.analysis.curves import ARMS, Arm, arm_of, suites
from harness.analysis.runs import benchmarks_of, load_runs, pair_runs
from harness.common.errors import HarnessError, RecipeError
from harness.common.files import write_atomic
from harness.config.explain import nearest
from harness.report.figures.accuracy import accuracy_figure, suite_figure
from harness.report.figures.arms import arms_figure
from harness.report.figures.attention import attention_figure
from harness.report.figures.frontier import frontier_figure
from harness.report.figures.needed_words import needed_figure
from harness.report.figures.reference_losses import losses_figure
from harness.report.figures.style import save
from harness.report.pages.html import losses_page, to_html
from harness.report.tables.selection import write_tables

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from harness.analysis.runs import Run
    from harness.config.suite import Suite


def build_figures(
    results_dir: Path,
    *,
    arms: Sequence[str] = (),
    damaged: Callable[[HarnessError], None] | None = None,
    definitions: Mapping[str, Suite] | None = None,
    finished: Sequence[Run] | None = None,
) -> list[Path]:
    """Write every figure to results_dir/figures, and the tables of elided words to results_dir/selection.

    Runs of a suite are drawn over their seeds, all others in pairs.

    Args:
        arms: of each suite, what to draw; empty takes `harness.analysis.curves.ARMS`, or every arm of a suite that
            has none of them.
        damaged: gets the error of each run whose record or items cannot be read, which is not drawn; None raises it.
        definitions: suite name -> its definition, which names the baseline and the order of the arms.
        finished: the runs below results_dir, where they were read before; None reads them.

    Returns:
        The files written; none where no run has an evaluation, or a file of a study.

    Raises:
        DataError, StaleError: a record, its items, or the file of a study is damaged or not what it says it is, or an
            arm of a suite has two runs of one seed.
        RecipeError: no suite has an arm of that name.
    """
    read = load_runs(results_dir, damaged) if finished is None else finished
    runs = [run for run in read if run.trained]
    by_suite = suites(runs)
    check_arms(arms, by_suite)
    folder = results_dir / "figures"
    written: list[Path] = []
    for pair in pair_runs([run for run in runs if not run.record.get("suite")]):
        for benchmark in benchmarks_of(pair.runs):
            written += save(accuracy_figure(pair, benchmark), folder / f"accuracy_{pair.name}_{benchmark}")
    for suite, members in by_suite.items():
        for benchmark in benchmarks_of([run for runs_of_arm in members.values() for run in runs_of_arm]):
            drawn = _drawn(members, arms, benchmark)
            if drawn:
                figure = suite_figure(suite, drawn, benchmark)
                written += save(figure, folder / f"accuracy_suite_{suite}_{benchmark}")
            whole = [run for runs_of_arm in members.values() for run in runs_of_arm]
            grouped = group_by_arm(suite, whole, (definitions or {}).get(suite))
            dots = arms_figure(grouped, benchmark)
            if dots is not None and len(members) > 1:
                written += save(dots, folder / f"arms_suite_{suite}_{benchmark}")
            against_flops = frontier_figure(grouped, benchmark)
            if against_flops is not None:
                written += save(against_flops, folder / f"frontier_suite_{suite}_{benchmark}")
    for run in runs:
        written += _choices(results_dir, run)
        written += _needed(run, folder)
        written += _attention(run, folder)
    return written


def _drawn(members: dict[str, tuple[Run, ...]], asked: Sequence[str], benchmark: str) -> list[Arm]:
    """The arms of a suite to draw, as far as they were evaluated."""
    names = [name for name in (asked or ARMS) if name in members] or (list(members) if not asked else [])
    return [arm for name in names if (arm := arm_of(name, members[name], benchmark)) is not None]


def _choices(results_dir: Path, run: Run) -> list[Path]:
    """Figure 3 and the tables of words of a run whose selection.json is there."""
    selection = read_selection(run.folder)
    if selection is None:
        return []
    written = write_tables(results_dir, selection)
    if selection["panels"]:
        path = results_dir / "figures" / f"reference_loss_{run.id}"
        written += save(losses_figure(selection), path)
        page = path.with_name(f"{path.name}.html")
        write_atomic(page, to_html(losses_page(selection)))
        written.append(page)
    return written


def _needed(run: Run, folder: Path) -> list[Path]:
    """The words that flipped items ask for, one figure a benchmark, of a run whose needed_words.json is there."""
    needed = read_needed(run.folder)
    if needed is None:
        return []
    figures = {benchmark: needed_figure(needed, benchmark) for benchmark in needed["benchmarks"]}
    return [
        path
        for benchmark, figure in figures.items()
        if figure is not None
        for path in save(figure, folder / f"needed_words_{run.id}_{benchmark}")
    ]


def _attention(run: Run, folder: Path) -> list[Path]:
    """Where a run and its baseline look, one figure a benchmark, of a run whose attention.json is there."""
    attention = read_attention(run.folder)
    if attention is None:
        return []
    return [
        path
        for benchmark in attention["benchmarks"]
        for path in save(attention_figure(attention, benchmark), folder / f"attention_{run.id}_{benchmark}")
    ]


def check_arms(asked: Sequence[str], by_suite: Mapping[str, dict[str, tuple[Run, ...]]]) -> None:
    """Raises RecipeError where no suite has an arm of that name."""
    known = sorted({arm for members in by_suite.values() for arm in members})
    for name in asked:
        if name not in known:
            hint = f"the arms are {', '.join(known)}" if known else "no finished run belongs to a suite"
            raise RecipeError(f"--draw {name}: there is no such arm{nearest(name, known)}", hint=hint)


__all__ = ["build_figures", "check_arms"]
