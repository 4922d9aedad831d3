"""Tables: pure functions of the records and item files below a results folder.

A table is one builder function in one of the modules here and one line in TABLES; what a number means stands in its
column's heading or in the notes below it. Ours and the paper's numbers never share a cell. The paper's own tables are
written to `paper/` whatever was run, with "missing" where no run of ours has the number, and printed where one has.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final

from harness.analysis.arms import seed_groups
from harness.analysis.paper.numbers import Paper, load_paper
from harness.analysis.runs import Pair, Run, benchmarks_of, load_runs, pair_runs
from harness.common.errors import DataError, HarnessError, StaleError
from harness.common.files import write_atomic
from harness.report import table as render
from harness.report.tables.accuracy import accuracy_table
from harness.report.tables.arms import pairs_table, time_table, tokens_table
from harness.report.tables.paper.build import paper_tables_of
from harness.report.tables.suites import seeds_table, suite_tables
from harness.report.tables.time_to_target import target_table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from harness.config.suite import Suite
    from harness.report.table import Table


@dataclass(frozen=True)
class ShownRuns:
    """What tables are built from.

    Attributes:
        runs: of every record below a results folder.
        suites: suite name -> its definition.
    """

    paper: Paper
    runs: tuple[Run, ...]
    suites: Mapping[str, Suite]

    @cached_property
    def single(self) -> list[Run]:
        """Runs that belong to no suite; a table of them has a row a run."""
        return [run for run in self.runs if run.suite is None]

    @cached_property
    def pairs(self) -> list[Pair]:
        return pair_runs(self.single)

    @cached_property
    def benchmarks(self) -> list[str]:
        return benchmarks_of(self.single)

    @cached_property
    def by_suite(self) -> dict[str, list[Run]]:
        """Suite name, ascending -> its runs."""
        members: dict[str, list[Run]] = {}
        for run in self.runs:
            if run.suite is not None:
                members.setdefault(run.suite[0], []).append(run)
        return dict(sorted(members.items()))


def _accuracy_tables(shown: ShownRuns) -> Iterable[Table]:
    """A table a benchmark; models evaluated as they are stand below the trained ones."""
    others = [run for run in shown.single if not run.trained]
    return [accuracy_table(shown.paper, shown.pairs, benchmark, others) for benchmark in shown.benchmarks]


def _target_tables(shown: ShownRuns) -> Iterable[Table]:
    table = target_table(shown.pairs, shown.benchmarks) if shown.pairs else None
    return [table] if table else []


def _suite_tables(shown: ShownRuns) -> Iterable[Table]:
    for name, members in shown.by_suite.items():
        yield from suite_tables(name, members, shown.suites.get(name))


TABLES: Final[tuple[Callable[[ShownRuns], Iterable[Table]], ...]] = (
    lambda shown: [pairs_table(shown.pairs, shown.benchmarks)] if shown.pairs else [],
    lambda shown: [tokens_table(shown.pairs)] if shown.pairs else [],
    lambda shown: [time_table(shown.pairs)] if shown.pairs else [],
    _target_tables,
    lambda shown: [seeds_table(arms) for arms in seed_groups(shown.single)],
    _accuracy_tables,
    _suite_tables,
    lambda shown: paper_tables_of(shown.paper, shown.runs),
)
"""Every table, in the order they are shown: from runs to their tables, none where they lack its numbers."""


def make_tables(
    results_dir: Path,
    suites: Mapping[str, Suite] | None = None,
    damaged: Callable[[HarnessError], None] | None = None,
    *,
    without_runs: bool = False,
    finished: Sequence[Run] | None = None,
) -> list[Table]:
    """All tables, in the order they are shown.

    Args:
        without_runs: the paper's tables are wanted where no run is finished, too.
        damaged: gets the error of each run whose record or items cannot be read; the tables are those of the others.
            None raises it.
        suites: suite name -> its definition: order of the arms, baseline, claims. A suite without one is shown with
            the arms that its records name.
        finished: the runs below results_dir, where they were read before; None reads them.

    Raises:
        DataError: there is no record (see `without_runs`), or one is damaged.
        StaleError: a record or its items are not what they say they are.
    """
    runs = load_runs(results_dir, damaged) if finished is None else finished
    if not runs and not without_runs:
        raise DataError(
            f"no finished run below {results_dir / 'runs'}",
            hint="start one: harness run RECIPE.yaml (`harness tables --all` shows the paper's own numbers)",
        )
    shown = ShownRuns(load_paper(), tuple(runs), suites or {})
    return [table for build in TABLES for table in build(shown)]


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


def printed(tables: Sequence[Table]) -> str:
    """The tables that are printed as one Markdown text; the others are named in its last line."""
    shown = [render.to_markdown(table) for table in tables if table.printed]
    left = unprinted(tables)
    return "\n".join([*shown, *([f"{left}\n"] if left else [])])


def unprinted(tables: Sequence[Table]) -> str:
    """A sentence that names the tables that are written and not shown; empty where there are none."""
    names = [f"{table.name}.md" for table in tables if not table.printed]
    return f"Also written (`harness tables --all` shows them): {', '.join(names)}." if names else ""


def _files(tables: Sequence[Table]) -> dict[str, str]:
    """File name below tables/ -> its text."""
    return {f"{table.name}.{end}": text for table in tables for end, text in render.written(table).items()}


def _files_in(folder: Path) -> set[str]:
    """The table files that lie below a folder, by name from it."""
    paths = (path for suffix in render.FORMS for path in folder.rglob(f"*.{suffix}"))
    return {path.relative_to(folder).as_posix() for path in paths}


__all__ = [
    "TABLES",
    "ShownRuns",
    "build_tables",
    "check_tables",
    "make_tables",
    "printed",
    "suite_tables",
    "tables_markdown",
    "unprinted",
    "write_tables",
]
