"""Any runs side by side: what differs in what was asked and where it ran, what came out, and what it took.

Runs of other machines, versions or data may be compared; what differs is said beside the numbers. Every difference
is taken against the first run.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from harness.analysis.runs import (
    ANSWER_COUNTS,
    Results,
    Run,
    answer_count,
    asked_alike,
    asked_otherwise,
    benchmarks_of,
    machine,
    scored_units,
    scoring_of,
    shown_scale,
    surroundings,
    teacher_cost,
)
from harness.analysis.statistics import (
    minimum_detectable,
    score_difference,
    shared_differences,
    sign_flip_test,
    standard_error,
)
from harness.analysis.summary import on_cpu, time_is_comparable
from harness.report import table as render
from harness.report.table import Cell, Column, Table
from harness.report.tables.accuracy import mean_cell

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from harness.analysis.runs import Evaluation
    from harness.report.tables.common import Row

_ABSENT: Final = "(not there)"
_NAMING: Final = ("name", "description")
_ASKED: Final = ("frames", "limit")
"""What of `asked_otherwise` has no words of its own here."""


def compare_tables(runs: Sequence[Run]) -> list[Table]:
    """What differs, what was computed and what it took, and every benchmark with its paired difference."""
    tables = [runs_table(runs), settings_table(runs)]
    benchmarks = benchmarks_of(runs)
    return [*tables, benchmarks_table(runs, benchmarks)] if benchmarks else tables


def runs_table(runs: Sequence[Run]) -> Table:
    """One row a run: targets, positions, time, memory."""
    columns = (
        Column("run", ("run",), right=False),
        Column("arm", ("arm",), right=False),
        Column("seed", ("seed",)),
        Column("steps", ("steps",)),
        Column("targets seen", ("targets_seen",)),
        Column("targets computed", ("targets_computed",)),
        Column("positions computed", ("positions_computed",)),
        Column("train time", ("train_seconds",)),
        Column("part of the first", ("train_ratio",)),
        Column("teacher time", ("teacher_seconds",)),
        Column("train device-h", ("train_device_hours",)),
        Column("peak memory", ("peak_bytes",)),
        Column("machine", ("machine",), right=False),
    )
    rows = []
    for run in runs:
        head = (render.label(run.id, run.id), render.label(run.arm), Cell(str(run.seed), (run.seed,)))
        if not run.trained:
            rows.append((*head, *(column.empty() for column in columns[3:-1]), render.label(machine(run))))
            continue
        totals, counts = run.totals, run.totals["counts"]
        seconds, hours = totals["seconds"]["train"], totals["device_hours"]["train"]
        teacher = teacher_cost(run)["seconds"] if run.record.get("reference") else None
        rows.append(
            (
                *head,
                render.count(totals["steps"]),
                render.count(counts["target"]),
                render.count(counts["scored"]),
                render.count(counts["active"]),
                render.train_time(seconds, totals.get("cpu_seconds")),
                render.ratio(_part_of(runs[0], run)),
                render.duration(teacher) if run.record.get("reference") else columns[9].empty(),
                Cell(f"{hours:.3g}", (hours,)),
                render.memory(totals["peak_bytes"]),
                render.label(machine(run)),
            )
        )
    times = (
        "Part of the first: of the training time, on CPUs of the CPU seconds; none where a run shared its machine or "
        "its record does not say."
    )
    return Table("runs", "Runs", columns, tuple(rows), (times, *_labels(runs)))


def _part_of(first: Run, run: Run) -> float | None:
    """Training time as a part of the first run's: CPU seconds on CPUs, wall seconds on GPUs; None where the two may
    not be set side by side (`time_is_comparable`)."""
    if not first.trained or not time_is_comparable([first, run]):
        return None
    ours, theirs = (
        one.totals["cpu_seconds"] if on_cpu(one) else one.totals["seconds"]["train"] for one in (run, first)
    )
    return float(ours / theirs) if theirs else None


def settings_table(runs: Sequence[Run]) -> Table:
    """Every key of recipe and surroundings that is not the same in all runs."""
    columns = (Column("differs", ("key",), right=False), *(Column(run.id, (run.id,), right=False) for run in runs))
    asked = [flat({k: v for k, v in run.record["recipe"].items() if k not in _NAMING}) for run in runs]
    settings_of_runs = [{f"recipe.{key}": value for key, value in settings.items()} for settings in asked]
    for settings, run in zip(settings_of_runs, runs, strict=True):
        settings |= _where(run)
    keys = list(dict.fromkeys(key for settings in settings_of_runs for key in settings))
    rows: list[Row] = []
    for key in keys:
        values = [settings.get(key, _ABSENT) for settings in settings_of_runs]
        if any(value != values[0] for value in values):
            rows.append((render.label(key), *(Cell(_short(value), (_text(value),)) for value in values)))
    notes = () if rows else ("Nothing differs but the name.",)
    return Table("settings", "What differs", columns, tuple(rows), notes)


def benchmarks_table(runs: Sequence[Run], benchmarks: Sequence[str]) -> Table:
    """The last score of each run, and its difference to the first run's, on the same items."""
    columns = (
        Column("benchmark", ("benchmark",), right=False),
        Column("run", ("run",), right=False),
        Column("step", ("step",)),
        Column("score", ("score", "low", "high")),
        Column("- first", ("difference", "difference_low", "difference_high")),
        Column("items", ("shared_units",)),
        Column("detectable", ("detectable",)),
        Column("only first : only this", ("only_first", "only_this")),
        Column("p", ("p",)),
        *(Column(title, (f"{kind}_first", f"{kind}_this")) for kind, title in ANSWER_COUNTS.items()),
        Column("but", ("but",), right=False),
    )
    rows = []
    for benchmark in benchmarks:
        first = runs[0].last(benchmark)
        for place, run in enumerate(runs):
            evaluation = run.last(benchmark)
            head = (render.label(benchmark), render.label(run.id, run.id))
            if evaluation is None:
                rows.append((*head, *(column.missing() for column in columns[2:-1]), render.label("not evaluated")))
                continue
            score = (Cell(str(evaluation["step"]), (evaluation["step"],)), mean_cell(run, evaluation))
            if place == 0 or first is None:
                rows.append((*head, *score, *(column.empty() for column in columns[4:])))
                continue
            rows.append((*head, *score, *_against(runs[0], first, run, evaluation, columns[4:])))
    notes = (
        "Score and difference: in per cent and points; [low, high]: 95 % over the items, with the trained models "
        "fixed; the spread between seeds is not in it. detectable: the smallest true difference that so many shared "
        "items find with 80 % power.",
        "only first : only this: shared items on which only that run is right (or better), over all tasks; a "
        "description. p: two-sided, of the difference itself as the score weighs it, by flipping the signs of the "
        "items' paired differences within each task; for right and wrong answers of one task it is McNemar's exact "
        "test. p is not corrected for the number of benchmarks and runs in the table.",
        "guessed, not understood, more than an option: answers of the first run : of this one. A guess is no "
        "evidence of either; an answer of more words than its option may be right and yet be wrong to its task.",
    )
    return Table("benchmarks", "Benchmarks", columns, tuple(rows), notes)


def as_json(tables: Sequence[Table]) -> dict[str, Any]:
    """The tables as one plain value, each as its JSON file has it."""
    return {"schema": 1, "tables": [json.loads(render.to_json(table)) for table in tables]}


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value of a nested mapping; an empty mapping and a list are values."""
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    dotted: dict[str, Any] = {}
    for key, entry in value.items():
        dotted |= flat(entry, f"{prefix}.{key}" if prefix else str(key))
    return dotted


def _against(first_run: Run, first: Evaluation, run: Run, evaluation: Evaluation, columns: Sequence[Column]) -> Row:
    """Difference, shared units, detectable difference, test, and what stands against the comparison."""
    but = []
    if first["step"] != evaluation["step"]:
        but.append(f"step {first['step']} against {evaluation['step']}")
    if _version(first) != _version(evaluation):
        but.append(f"lmms-eval {_version(first)} against {_version(evaluation)}")
    if first.get("prompts") != evaluation.get("prompts"):
        but.append(f"prompts {first.get('prompts')} against {evaluation.get('prompts')}")
    if first.get("questions") != evaluation.get("questions"):
        but.append("other media or answers")
    but += [f"other {reason}" for reason in asked_otherwise(first_run, run, first["benchmark"]) if reason in _ASKED]
    if not asked_alike(first, evaluation):
        return (*(column.missing() for column in columns[:-1]), render.label("; ".join([*but, "other questions"])))
    ours, theirs = first_run.items(first), run.items(evaluation)
    if ours is None or theirs is None:
        return (*(column.missing() for column in columns[:-1]), render.label("; ".join([*but, "items not kept"])))
    scoring, scale = scoring_of(first), shown_scale(first)
    a, b = scored_units(first, ours), scored_units(first, theirs)
    difference = score_difference(scoring, a, b)
    smallest = minimum_detectable(standard_error(scoring, shared_differences(a, b)))
    only_first, only_this = _only_one_better(a, b)
    p = sign_flip_test(scoring, a, b)
    return (
        render.accuracy(difference, scale=scale, signed=True),
        render.count(difference.n),
        Cell(f"{scale * smallest:.1f}", (smallest,)),
        Cell(f"{only_first} : {only_this}", (only_first, only_this)),
        Cell(f"{p:.2g}", (p,)),
        *_answer_cells(first, evaluation),
        render.label("; ".join(but)),
    )


def _answer_cells(first: Evaluation, evaluation: Evaluation) -> list[Cell]:
    """Counts of answers that qualify the two scores, one cell a kind."""
    cells = []
    for kind in ANSWER_COUNTS:
        counts = answer_count(first, kind), answer_count(evaluation, kind)
        shown = ["not recorded" if count is None else str(count) for count in counts]
        cells.append(Cell(shown[0] if set(counts) == {None} else " : ".join(shown), counts))
    return cells


def _only_one_better(first: Results, second: Results) -> tuple[int, int]:
    """How many shared units are better in the first run, and how many in the second, over all tasks."""
    values = [value for differences in shared_differences(first, second).values() for value in differences]
    return sum(value < 0 for value in values), sum(value > 0 for value in values)


def _where(run: Run) -> dict[str, Any]:
    """What a run was made with, besides its recipe."""
    provenance = run.record["provenance"]
    surroundings = {"machine": machine(run), **{key: provenance[key] for key in ("python", "data", "weights")}}
    code = (provenance.get("git") or {}).get("commit")
    versions = {f"package.{name}": version for name, version in sorted(provenance["packages"].items())}
    return {**surroundings, "code": code, **versions}


def _labels(runs: Sequence[Run]) -> list[str]:
    """What besides the recipe differs from the first run, in words."""
    notes = []
    for run in runs[1:]:
        other = surroundings(runs[0], run)
        if other:
            notes.append(f"{run.id}: not made as {runs[0].id} was: {', '.join(other)} differ.")
    return notes


def _version(evaluation: Mapping[str, Any]) -> str:
    return str(evaluation.get("lmms_eval") or evaluation.get("versions", {}).get("lmms_eval", "unknown"))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _short(value: Any) -> str:
    text = _text(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


__all__ = ["as_json", "compare_tables"]
