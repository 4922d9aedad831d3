"""Reports: one HTML file for a run, a pair, a few runs or a suite. Pure functions of records and selection.json."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.analysis.curves import arm_of, scale_of, suites, trained
from harness.analysis.runs import Pair, benchmarks_of, difference_of_means, mean_of_tasks, pair_runs
from harness.analysis.selection import read_selection
from harness.common.files import write_atomic
from harness.common.hashing import digest
from harness.report import table as render
from harness.report.pages.html import Page, Tile, to_html
from harness.report.pages.runs import name_of, run_sections
from harness.report.pages.suite import suite_sections

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from harness.analysis.runs import Run


def write_report(results_dir: Path, runs: Sequence[Run]) -> Path:
    """The report of these runs, in results_dir/reports: that of a suite where they are all of one, and several.

    Raises:
        DataError, StaleError: a record, its items or its selection.json is damaged or of something else.
        ValueError: there is no run.
    """
    if not runs:
        raise ValueError("a report needs at least one run")
    name, page = make_page(runs)
    path = results_dir / "reports" / f"{name}.html"
    write_atomic(path, to_html(page))
    return path


def make_page(runs: Sequence[Run]) -> tuple[str, Page]:
    """The name of a report's file without its ending, and the page."""
    by_suite = suites(runs)
    if len(runs) > 2 and len(by_suite) == 1 and all(run.record.get("suite") for run in runs):
        (suite, arms), *_ = by_suite.items()
        return f"suite-{suite}", suite_page(suite, arms)
    pairs = pair_runs(runs)
    if len(pairs) == 1 and len(runs) == 2:
        pair = pairs[0]
        return f"pair-{(pair.gated or pair.runs[0]).id}", _runs_page(runs, pairs, f"{pair.name} and its baseline")
    if len(runs) == 1:
        return runs[0].id, _runs_page(runs, pairs, runs[0].id)
    return f"runs-{digest([run.id for run in runs])[:8]}", _runs_page(runs, pairs, f"{len(runs)} runs")


def suite_page(suite: str, arms: dict[str, tuple[Run, ...]]) -> Page:
    """The report of a suite."""
    runs = [run for members in arms.values() for run in members]
    seeds = sorted({run.record["recipe"]["seed"] for run in runs})
    tiles = [Tile("runs", str(len(runs)), f"{len(arms)} arms, seeds {', '.join(map(str, seeds))}")]
    for benchmark in benchmarks_of(runs):
        scale, _ = scale_of(runs, benchmark)
        for name in ("baseline", "regate"):
            arm = arm_of(name, arms[name], benchmark) if name in arms else None
            if arm is not None and arm.points:
                last = arm.points[-1].accuracy
                note = f"{benchmark}, mean of {len(arm.seeds)}: [{scale * last.low:.1f}, {scale * last.high:.1f}]"
                tiles.append(Tile(arm.label, f"{scale * last.value:.1f}", note))
    shown = [selection for run in looked_at(runs) if (selection := read_selection(run.folder)) is not None]
    lead = "Several seeds of each arm; differences are taken within a seed."
    return Page(f"Suite {suite}", lead, tuple(tiles), tuple(suite_sections(suite, arms, shown)), _foot(runs))


def looked_at(runs: Sequence[Run]) -> list[Run]:
    """The gated runs whose choices are shown word by word: every one outside of suites, and of each suite one, the
    first seed of its first arm that selects as ReGATE does."""
    shown = [run for run in runs if run.gate is not None and not run.record.get("suite")]
    for arms in suites(runs).values():
        firsts = (members[0] for members in arms.values())
        shown += [run for run in firsts if run.gate is not None and run.gate["selection"] == "regate"][:1]
    return shown


def _runs_page(runs: Sequence[Run], pairs: Sequence[Pair], title: str) -> Page:
    selections = [selection for run in runs if (selection := read_selection(run.folder)) is not None]
    sections = run_sections(runs, pairs, selections)
    lead = "; ".join(f"{name_of(run, runs)}: {run.id}" for run in runs) + "."
    return Page(title, lead, tuple(_tiles(runs, pairs)), tuple(sections), _foot(runs))


def _tiles(runs: Sequence[Run], pairs: Sequence[Pair]) -> list[Tile]:
    tiles = []
    for benchmark in benchmarks_of(runs):
        scale, _ = scale_of(runs, benchmark)
        for run in runs:
            entry = run.last(benchmark)
            mean = None if entry is None else mean_of_tasks(entry, run.items(entry))
            if mean is not None:
                note = f"95 % [{scale * mean.low:.1f}, {scale * mean.high:.1f}]"
                tiles.append(Tile(f"{benchmark}: {name_of(run, runs)}", f"{scale * mean.value:.1f}", note))
        for pair in pairs:
            difference = difference_of_means(pair, benchmark)
            if difference is not None:
                ends = f"95 % [{scale * difference.low:+.1f}, {scale * difference.high:+.1f}], paired by item"
                tiles.append(Tile(f"{benchmark}: difference", f"{scale * difference.value:+.1f}", ends))
    for run in filter(trained, runs):
        totals = run.totals
        note = "" if run.gate is None else f"{render.percent(totals['targets_reduction']).text} fewer than all"
        label = "" if len(runs) == 1 else f": {name_of(run, runs)}"
        tiles.append(Tile(f"targets computed{label}", render.count(totals["counts"]["scored"]).text, note))
        tiles.append(Tile(f"training time{label}", render.duration(totals["seconds"]["train"]).text))
    return tiles


def _foot(runs: Sequence[Run]) -> str:
    ids = [run.id for run in runs]
    named = ", ".join(ids[:4]) + (f" and {len(ids) - 4} more" if len(ids) > 4 else "")
    return f"Made from the records and items of {named}. The same records always give the same page."


__all__ = ["looked_at", "make_page", "suite_page", "write_report"]
