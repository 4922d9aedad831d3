"""Tables: pure functions of the records and item files below a results folder.

A table is one builder function in one of the modules here; what a number means stands in its column's heading or in
the notes below it. Ours and the paper's numbers never share a cell. The paper's own tables are written to `paper/`
whatever was run, with "missing" where no run of ours has the number, and printed where one has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.analysis.arms import seed_groups
from harness.analysis.paper import Paper, load_paper
from harness.analysis.runs import Run, benchmarks_of, load_runs, pair_runs
from harness.common.errors import DataError, StaleError
from harness.common.files import write_atomic
from harness.report import table as render
from harness.report.tables.accuracy import accuracy_table
from harness.report.tables.arms import pairs_table, time_table, tokens_table
from harness.report.tables.paper import paper_tables_of
from harness.report.tables.suites import seeds_table, suite_tables
from harness.report.tables.time_to_target import target_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from harness.config.suite import Suite
    from harness.report.table import Table


def make_tables(results_dir: Path, suites: Mapping[str, Suite] | None = None) -> list[Table]:
    """All tables, in the order they are shown.

    Args:
        suites: suite name -> its definition: order of the arms, baseline, claims. A suite without one is shown with
            the arms that its records name.

    Raises:
        DataError: there is no record, or one is damaged.
        StaleError: a record or its items are not what they say they are.
    """
    runs = load_runs(results_dir)
    if not runs:
        raise DataError(f"no finished run below {results_dir / 'runs'}", hint="start one: harness run RECIPE.yaml")
    paper = load_paper()
    tables = _run_tables(paper, [run for run in runs if run.suite is None])
    by_suite: dict[str, list[Run]] = {}
    for run in runs:
        if run.suite is not None:
            by_suite.setdefault(run.suite[0], []).append(run)
    for name, members in sorted(by_suite.items()):
        tables += suite_tables(name, members, (suites or {}).get(name))
    return [*tables, *paper_tables_of(paper, runs)]


def write_tables(tables: Sequence[Table], results_dir: Path) -> list[Path]:
    """Write the tables to results_dir/tables in every form (`render.FORMS`); the files written. What else lies there
    stays: `check_tables` names it."""
    folder = results_dir / "tables"
    files = _files(tables)
    for name, text in files.items():
        write_atomic(folder / name, text)
    return [folder / name for name in files]


def build_tables(results_dir: Path, suites: Mapping[str, Suite] | None = None) -> list[Path]:
    """Make and write every table; the files written. Errors as in `make_tables`."""
    return write_tables(make_tables(results_dir, suites), results_dir)


def check_tables(results_dir: Path, suites: Mapping[str, Suite] | None = None) -> list[Path]:
    """That the tables on disk are, byte for byte, those that the records give; the files compared.

    Raises:
        StaleError: naming each file that is missing, differs, or is made from no record any more.
        DataError: as in `make_tables`.
    """
    folder = results_dir / "tables"
    files = _files(make_tables(results_dir, suites))
    present = _files_in(folder)
    wrong = [f"{name} is missing" for name in files if name not in present]
    wrong += [
        f"{name} differs" for name in files if name in present and (folder / name).read_text("utf-8") != files[name]
    ]
    wrong += [f"{name} comes from no record" for name in sorted(present - files.keys())]
    if wrong:
        raise StaleError(
            f"{folder}: {len(wrong)} of {len(files)} files are not what the records give: {'; '.join(sorted(wrong))}",
            hint="write them again: harness tables; remove by hand what comes from no record",
        )
    return [folder / name for name in files]


def tables_markdown(results_dir: Path, suites: Mapping[str, Suite] | None = None) -> str:
    """The tables that are printed, as one Markdown text. Errors as in `make_tables`."""
    return printed(make_tables(results_dir, suites))


def printed(tables: Sequence[Table], *, everything: bool = False) -> str:
    """The tables as one Markdown text; those not printed are named in its last line, or shown, too."""
    shown = [render.to_markdown(table) for table in tables if everything or table.printed]
    unprinted = [f"{table.name}.md" for table in tables if not table.printed]
    if unprinted and not everything:
        shown.append(f"Also written (`harness tables --all` shows them): {', '.join(unprinted)}.\n")
    return "\n".join(shown)


def _run_tables(paper: Paper, runs: Sequence[Run]) -> list[Table]:
    """Tables with a row a run, of the runs that belong to no suite."""
    pairs, benchmarks = pair_runs(runs), benchmarks_of(runs)
    tables = []
    if pairs:
        tables = [pairs_table(pairs, benchmarks), tokens_table(pairs), time_table(pairs)]
        reached = target_table(pairs, benchmarks)
        tables += [reached] if reached else []
    tables += [seeds_table(arms) for arms in seed_groups(runs)]
    others = [run for run in runs if not run.trained]
    return tables + [accuracy_table(paper, pairs, benchmark, others) for benchmark in benchmarks]


def _files(tables: Sequence[Table]) -> dict[str, str]:
    """File name below tables/ -> its text."""
    return {f"{table.name}.{end}": text for table in tables for end, text in render.written(table).items()}


def _files_in(folder: Path) -> set[str]:
    """The table files that lie below a folder, by name from it."""
    paths = (path for suffix in render.FORMS for path in folder.rglob(f"*.{suffix}"))
    return {path.relative_to(folder).as_posix() for path in paths}


__all__ = [
    "build_tables",
    "check_tables",
    "make_tables",
    "printed",
    "suite_tables",
    "tables_markdown",
    "write_tables",
]
