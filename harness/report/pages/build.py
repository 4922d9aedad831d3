"""Reports: one HTML file for a run, a pair, a few runs or a suite. Pure functions of records and selection.json."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.analysis.curves import suites
from harness.analysis.runs import pair_runs
from harness.common.files import write_atomic
from harness.common.hashing import digest
from harness.report.pages.html import to_html
from harness.report.pages.runs import runs_page
from harness.report.pages.suite import suite_page

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from harness.analysis.runs import Run
    from harness.config.suite import Suite
    from harness.report.pages.html import Page


def write_report(results_dir: Path, runs: Sequence[Run], definitions: Mapping[str, Suite] | None = None) -> Path:
    """The report of these runs, in results_dir/reports: that of a suite where they are all of one, and several.

    Args:
        definitions: suite name -> its definition, whose claims the report of a suite begins with.

    Raises:
        DataError, StaleError: a record, its items or its selection.json is damaged or of something else.
        ValueError: there is no run.
    """
    if not runs:
        raise ValueError("a report needs at least one run")
    name, page = make_page(runs, definitions)
    path = results_dir / "reports" / f"{name}.html"
    write_atomic(path, to_html(page))
    return path


def make_page(runs: Sequence[Run], definitions: Mapping[str, Suite] | None = None) -> tuple[str, Page]:
    """The name of a report's file without its ending, and the page."""
    by_suite = suites(runs)
    if len(runs) > 2 and len(by_suite) == 1 and all(run.record.get("suite") for run in runs):
        (suite, arms), *_ = by_suite.items()
        return f"suite-{suite}", suite_page(suite, arms, (definitions or {}).get(suite))
    pairs = pair_runs(runs)
    if len(pairs) == 1 and len(runs) == 2:
        pair = pairs[0]
        return f"pair-{(pair.gated or pair.runs[0]).id}", runs_page(runs, pairs, f"{pair.name} and its baseline")
    if len(runs) == 1:
        return runs[0].id, runs_page(runs, pairs, runs[0].id)
    return f"runs-{digest([run.id for run in runs])[:8]}", runs_page(runs, pairs, f"{len(runs)} runs")


__all__ = ["make_page", "write_report"]
