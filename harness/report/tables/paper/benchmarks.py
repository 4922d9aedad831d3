"""The paper's tables of benchmarks with our rows among them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from harness.analysis.paper.numbers import GATED, GROUPS, MODELS, TABLES, PaperRow, shown
from harness.analysis.paper.runs import BASELINE, EXTENDED, PaperRuns, targets
from harness.report import table as render
from harness.report.table import Cell, Column, Table
from harness.report.tables.accuracy import mean_cell

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.analysis.runs import Run
    from harness.benchmarks import PaperBenchmark
    from harness.report.tables.common import Row

TITLES: Final = {
    "table1_image": "Table 1 of the paper: image understanding",
    "table2_long_video": "Table 2 of the paper: long video",
    "table3_short_video": "Table 3 of the paper: short video and fine-grained understanding",
}
_WORDS: Final = {"open_source": "open source", "proprietary": "proprietary", "regate": "the paper's runs"}


def benchmark_rows_table(name: str, ours: PaperRuns) -> Table:
    """One of Tables 1 to 3: the paper's rows as printed, our runs below the row that they reproduce, and the
    differences ReGATE - baseline. Best and second best number of each column are marked."""
    benchmarks = TABLES[name]
    video = name != "table1_image"
    columns = [
        Column("model", ("model",), right=False),
        Column("language model", ("llm",), right=False),
        Column("numbers of", ("source",), right=False),
        *([Column("frames", ("frames",))] if video else []),
        Column("targets computed (paper: tokens)", ("tokens",)),
        *(_benchmark_column(benchmark) for benchmark in benchmarks),
    ]
    head = len(columns) - len(benchmarks)
    rows: list[Row] = []
    compared: dict[str, list[int]] = {"open": [], "paper": [], "ours": []}
    printed = ours.paper.benchmark_table(name)
    for row in printed:
        kind = {"open_source": "open", "regate": "paper"}.get(row.group)
        if kind:
            compared[kind].append(len(rows))
        rows.append(_paper_row(row, benchmarks, video=video))
        if row.group == GROUPS[-1]:
            compared["ours"].append(len(rows))
            rows.append(_our_row(row, benchmarks, ours, video=video))
    for source in ("paper", "ours"):
        _mark(rows, [*compared["open"], *compared[source]], head, only=compared[source], others=source == "paper")
    rows += [_evaluated_row(run, benchmarks, video=video) for run in ours.evaluated]
    rows += [row for model in MODELS.values() for row in _differences(model, printed, benchmarks, ours, head)]
    notes = (
        "Accuracy in per cent, MME in points. Rows of other models, open or proprietary, are the paper's. Bold and "
        "underlined: best and second best of a column among the open models and the paper's runs, and for our rows "
        "among the open models and ours. The paper says tokens without saying which; ours are targets computed.",
        "[low, high]: 95 %, over the items for one run and over the seeds for several; paired for a difference.",
        *ours.notes,
    )
    return Table(f"paper/{name}", TITLES[name], tuple(columns), tuple(rows), notes, printed=bool(ours.models()))


def _benchmark_column(benchmark: PaperBenchmark) -> Column:
    name = benchmark.name
    return Column(benchmark.title, (name, f"{name}_low", f"{name}_high"))


def arm_of(label: str) -> tuple[str, str]:
    """Model and arm of a row of the paper's own runs."""
    return label.removesuffix(GATED), EXTENDED if label.endswith(GATED) else BASELINE


def _paper_row(row: PaperRow, benchmarks: Sequence[PaperBenchmark], *, video: bool) -> Row:
    frames = [Cell(str(row.frames), (row.frames,))] if row.frames is not None else [Cell(render.MISSING, (None,))]
    return (
        render.label(row.label),
        Cell(row.llm or "", (row.llm or "",)),
        Cell("paper", (f"paper ({_WORDS[row.group]})",)),
        *(frames if video else []),
        render.large(row.tokens) if row.group == GROUPS[-1] else Cell("", ("",)),
        *(
            render.accuracy(None, scale=shown(benchmark), value=row.scores[benchmark.name])
            for benchmark in benchmarks
        ),
    )


def _our_row(row: PaperRow, benchmarks: Sequence[PaperBenchmark], ours: PaperRuns, *, video: bool) -> Row:
    model, arm = arm_of(row.label)
    scores = [ours.score(model, arm, benchmark.name) for benchmark in benchmarks]
    frames = ours.cost(model, arm, lambda run: run.record["recipe"]["data"].get("frames"))
    tokens = ours.cost(model, arm, targets)
    seen = Cell(render.MISSING, (None,)) if frames.value is None else Cell(f"{frames.value:g}", (frames.value,))
    return (
        render.label(row.label, *(run.id for run in ours.of(model, arm).values())),
        Cell(row.llm or "", (row.llm or "",)),
        render.label("ours"),
        *([seen] if video else []),
        render.large(tokens.value),
        *(
            render.accuracy(score.interval, scale=shown(benchmark), value=score.value)
            for benchmark, score in zip(benchmarks, scores, strict=True)
        ),
    )


def _evaluated_row(run: Run, benchmarks: Sequence[PaperBenchmark], *, video: bool) -> Row:
    """Weights that were evaluated and not trained here."""
    scores = [
        mean_cell(run, evaluation) if (evaluation := run.last(benchmark.name)) else render.accuracy(None)
        for benchmark in benchmarks
    ]
    return (
        render.label(run.id, run.id),
        Cell("", ("",)),
        render.label("ours (evaluated only)"),
        *([Cell("", ("",))] if video else []),
        Cell("", ("",)),
        *scores,
    )


def _differences(
    model: str, printed: Sequence[PaperRow], benchmarks: Sequence[PaperBenchmark], ours: PaperRuns, head: int
) -> list[Row]:
    """What ReGATE changes for one model: the paper's row and ours."""
    rows = {row.label: row for row in printed}
    if model not in rows:
        return []
    before, after = rows[model].scores, rows[model + GATED].scores
    cells = []
    for benchmark in benchmarks:
        first, second = before[benchmark.name], after[benchmark.name]
        value = None if first is None or second is None else round(second - first, 6)
        cells.append(render.accuracy(None, scale=shown(benchmark), signed=True, value=value))
    differences = [ours.difference(model, EXTENDED, BASELINE, benchmark.name) for benchmark in benchmarks]
    our_cells = [
        render.accuracy(difference.interval, scale=shown(benchmark), signed=True, value=difference.value)
        for benchmark, difference in zip(benchmarks, differences, strict=True)
    ]
    name = render.label(f"{model}{GATED} - {model}")
    behind = tuple(dict.fromkeys(run for difference in differences for run in difference.runs))
    blank = [Cell("", ("",))] * (head - 3)
    return [
        (name, Cell("", ("",)), render.label("paper"), *blank, *cells),
        (replace(name, runs=behind), Cell("", ("",)), render.label("ours"), *blank, *our_cells),
    ]


def _mark(rows: list[Row], among: Sequence[int], head: int, *, only: Sequence[int], others: bool) -> None:
    """Mark best and second best of each benchmark among some rows; the marks of rows outside `only` are kept as
    they are unless `others`."""
    for column in range(head, len(rows[0])):
        marked = dict(zip(among, render.marked([rows[index][column] for index in among]), strict=True))
        for index in among if others else only:
            row = rows[index]
            rows[index] = (*row[:column], marked[index], *row[column + 1 :])


__all__ = ["benchmark_rows_table"]
