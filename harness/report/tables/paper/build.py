"""All tables of the paper, in its order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.analysis.paper.numbers import MODELS, TABLES, Paper
from harness.analysis.paper.runs import paper_runs
from harness.report.tables.paper.benchmarks import benchmark_rows_table
from harness.report.tables.paper.claims import claims_table
from harness.report.tables.paper.comparison import model_comparison
from harness.report.tables.paper.costs import cost_tables
from harness.report.tables.paper.prompts import inconsistencies_table, prompts_table

if TYPE_CHECKING:
    from collections.abc import Iterable

    from harness.analysis.paper.definitions import Definition
    from harness.analysis.runs import Run
    from harness.report.table import Table


def paper_tables_of(
    paper: Paper, runs: Iterable[Run], definitions: tuple[Definition, ...] | None = None
) -> list[Table]:
    """Every table of the paper beside our runs; printed where a run has one of its models. `definitions`: as for
    `paper_runs`."""
    ours = paper_runs(paper, runs, definitions)
    models = list(MODELS.values())
    printed = bool(ours.models())
    tables = [benchmark_rows_table(name, ours) for name in TABLES]
    tables += [model_comparison(ours, model) for model in models]
    tables += cost_tables(ours)
    tables += [prompts_table(paper, printed=printed), claims_table(ours)]
    return [*tables, inconsistencies_table(paper, printed=printed)]


__all__ = ["paper_tables_of"]
