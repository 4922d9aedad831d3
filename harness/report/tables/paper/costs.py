"""The paper's tables of costs and ablations: efficiency (both versions), lambda and teacher."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from harness.analysis import verdicts
from harness.analysis.paper.definitions import TEACHER_LARGE, TEACHER_SMALL
from harness.analysis.paper.numbers import MODELS
from harness.analysis.paper.runs import (
    BASELINE,
    EXTENDED,
    FAST,
    LAMBDA_0,
    LAMBDA_1,
    Measured,
    PaperRuns,
    device_hours,
    memory_gb,
    papers_machine,
    targets,
    teacher_hours,
    wall_hours,
)
from harness.analysis.summary import step_speedup
from harness.common.numbers import percent
from harness.report import table as render
from harness.report.tables.paper.comparison import (
    ROUNDING,
    UNKEPT,
    Entry,
    comparison_table,
    cost_entry,
    judge_score,
    per_cent,
)
from harness.report.tables.paper.efficiency import ARMS, efficiency_acl_table, efficiency_v1_table
from harness.report.tables.time_to_target import compared, reaches

if TYPE_CHECKING:
    from harness.analysis.verdicts import Verdict
    from harness.report.table import Table

LAMBDAS: Final = {"0.0": LAMBDA_0, "1.0": LAMBDA_1, "0.5": EXTENDED}
TEACHERS: Final = {"Qwen2-1.5B": TEACHER_SMALL, "Qwen2-57B": TEACHER_LARGE, "Qwen2-7B": EXTENDED}
"""Row of the teacher ablation -> arm. The paper's 57B is the only Qwen2 of that size, a mixture of experts."""
_ABLATED: Final = "VideoLLaMA2"
_AVERAGE: Final = (
    "Average accuracy: ours is the unweighted mean of the paper's benchmarks in per cent, MME left out, and missing "
    "until all of them are evaluated. The paper does not define its own; no subset of its printed scores gives it."
)
_TOKENS: Final = (
    "The paper says tokens without saying which are counted; ours are targets computed. Step speed-up: dense over "
    "sparse step of one run (same work of an optimizer step); time-to-target speed-up: the baseline's whole training "
    "time over that of the run which is as accurate as it (same accuracy). The paper reports no step speed-up."
)
_MACHINE: Final = "Hours and memory are judged only where our runs had the paper's number of the paper's GPUs."


def cost_tables(runs: PaperRuns) -> list[Table]:
    """All of them, in the paper's order."""
    shaped = [efficiency_v1_table(runs), efficiency_acl_table(runs)]
    judged = [efficiency_v1(runs), efficiency_acl(runs)]
    return [*shaped, *judged, lambda_v1(runs), lambda_acl(runs), teacher_acl(runs)]


def efficiency_v1(runs: PaperRuns) -> Table:
    """v1 Table 4, one number a row, each judged; and the two speed-ups, each under its own name."""
    printed = runs.paper.costs("table4_efficiency_v1")
    entries: list[Entry] = []
    for model in ("VideoLLaMA2", "VideoChat2"):
        base = printed[model]
        for arm, end in ARMS.items():
            label = model + end
            row = printed[label]
            entries += _tokens(runs, model, arm, label, row["tokens"], base["tokens"])
            entries.append(_hours(runs, model, arm, label, "train hours (wall)", row["train_hours"], wall_hours))
            if arm != BASELINE:
                entries += _speedups(runs, model, arm, label, base["train_hours"] / row["train_hours"])
            ours = runs.score(model, arm, "mvbench")
            paper = row["MVBench"] / 100
            entries.append(Entry(label, "MVBench", ours, paper, judge_score(ours, paper, ROUNDING), per_cent))
    return _table("paper/table4_efficiency_v1_judged", "Table 4 of the paper (v1), judged", entries, runs, MVBENCH)


def efficiency_acl(runs: PaperRuns) -> Table:
    """The camera-ready's efficiency table, one number a row, each judged."""
    printed = runs.paper.costs("table4_efficiency_acl")
    entries: list[Entry] = []
    for model in MODELS.values():
        base = printed[model]
        for arm, end in ARMS.items():
            label = model + end
            row = printed[label]
            entries += _tokens(runs, model, arm, label, row["tokens"], base["tokens"])
            entries.append(_hours(runs, model, arm, label, "train GPU-hours", row["train_gpu_hours"], device_hours))
            if arm != BASELINE:
                entries.append(
                    _hours(runs, model, arm, label, "teacher GPU-hours", row["teacher_gpu_hours"], teacher_hours)
                )
                entries += _speedups(runs, model, arm, label, base["train_gpu_hours"] / row["train_gpu_hours"])
            entries.append(
                _hours(runs, model, arm, label, "memory GB a GPU", row["avg_mem_gb_per_gpu"], memory_gb, never=True)
            )
            entries.append(_average(label, runs.average(model, arm), row["avg_accuracy"]))
    notes = (_AVERAGE, "Memory: the paper's is an average, ours a peak; shown and not judged.")
    title = "Efficiency table of the camera-ready, judged"
    return _table("paper/table4_efficiency_acl_judged", title, entries, runs, notes)


def lambda_v1(runs: PaperRuns) -> Table:
    """v1 Table 5: the weight of the reference loss, on MVBench."""
    entries = []
    for label, row in runs.paper.costs("table5_lambda_v1").items():
        ours = runs.score(_ABLATED, LAMBDAS[label], "mvbench")
        paper = row["MVBench"] / 100
        name = f"lambda {label}: {row['description']}"
        entries.append(Entry(name, "MVBench", ours, paper, judge_score(ours, paper, ROUNDING), per_cent))
    notes = (_LAMBDA, UNKEPT, verdicts.RULES["score"], *runs.notes)
    title = "Table 5 of the paper (v1): weight of the reference loss"
    return comparison_table("paper/table5_lambda_v1", title, entries, notes, printed=_any_of_the_models(runs))


def lambda_acl(runs: PaperRuns) -> Table:
    """The camera-ready's lambda ablation, on the average accuracy."""
    entries = [
        _average(f"lambda {label}: {row['description']}", runs.average(_ABLATED, LAMBDAS[label]), row["avg_accuracy"])
        for label, row in runs.paper.costs("ablation_lambda_acl").items()
    ]
    notes = (_LAMBDA, _AVERAGE, UNKEPT, verdicts.RULES["score"], *runs.notes)
    title = "Lambda ablation of the camera-ready"
    return comparison_table("paper/ablation_lambda_acl", title, entries, notes, printed=_any_of_the_models(runs))


def teacher_acl(runs: PaperRuns) -> Table:
    """The camera-ready's teacher ablation, on the average accuracy."""
    entries = [
        _average(f"teacher {label}", runs.average(_ABLATED, TEACHERS[label]), row["avg_accuracy"])
        for label, row in runs.paper.costs("ablation_teacher_acl").items()
    ]
    own = "Qwen2-7B is the student's own language model."
    notes = (own, _AVERAGE, UNKEPT, verdicts.RULES["score"], *runs.notes)
    title = "Teacher ablation of the camera-ready"
    return comparison_table("paper/ablation_teacher_acl", title, entries, notes, printed=_any_of_the_models(runs))


_LAMBDA: Final = (
    "The paper calls lambda 1.0 the reference loss alone, which only the convex reading of Eq. 3 gives; our row says "
    "in its recipe which reading it took."
)
MVBENCH: Final = ("MVBench: zero-shot accuracy in per cent.",)


def _tokens(runs: PaperRuns, model: str, arm: str, label: str, paper: float, baseline: float) -> list[Entry]:
    ours = runs.cost(model, arm, targets)
    entries = [cost_entry(label, "targets computed (paper: tokens)", ours, paper, _large)]
    if arm != BASELINE:
        part = runs.ratio(model, arm, BASELINE, targets)
        reduction = Measured(None if part.value is None else 1 - part.value, runs=part.runs)
        entries.append(cost_entry(label, "reduction of them", reduction, 1 - paper / baseline, percent))
    return entries


def _hours(
    runs: PaperRuns,
    model: str,
    arm: str,
    label: str,
    quantity: str,
    paper: float | None,
    number: Any,
    *,
    never: bool = False,
) -> Entry:
    judged = not never and papers_machine(runs.of(model, arm).values(), model)
    return cost_entry(label, quantity, runs.cost(model, arm, number), paper, _three, judged=judged)


def _speedups(runs: PaperRuns, model: str, arm: str, label: str, paper: float) -> list[Entry]:
    """Step speed-up, and time-to-target speed-up: of the paper, that of its fast run."""
    by_seed = runs.of(model, arm)
    ids = tuple(run.id for run in by_seed.values())
    steps = [value for run in by_seed.values() if (value := step_speedup(run))]
    step = Measured(median(steps), runs=ids) if steps else Measured()
    verdict: Verdict | None = "missing" if step.value is None else None
    entries = [Entry(label, "step speed-up", step, None, verdict, _three, sampled=False)]
    ours = _time_to_target(runs, model, arm)
    reported = paper if arm == FAST else None
    judged = cost_entry(label, "time-to-target speed-up", ours, reported, _three)
    return [*entries, judged if reported is not None or ours.value is None else replace(judged, verdict=None)]


def _time_to_target(runs: PaperRuns, model: str, arm: str) -> Measured:
    """The baseline's whole training time over the time in which the run reaches its final MVBench accuracy: the
    median over seeds, infinite where half of them do not reach it; missing without items, or where the two times
    cannot be compared."""
    gated, baselines = runs.of(model, arm), runs.of(model, BASELINE)
    crossings = {seed: reaches(baselines[seed], run, "mvbench") for seed, run in gated.items() if seed in baselines}
    if not crossings or not all(crossings.values()):
        return Measured()
    values = []
    for seed, crossing in crossings.items():
        last = baselines[seed].last("mvbench")
        key = compared("seconds", baselines[seed], gated[seed], "mvbench")
        if key is None:
            return Measured()
        at = crossing["seconds"].at if crossing else None
        values.append(0.0 if at is None or last is None else last["progress"][key] / at)
    # Never reached is a speed-up of nothing, and is shown as not reached.
    middle = median(values)
    return Measured(middle or math.inf, runs=tuple(run.id for s in crossings for run in (gated[s], baselines[s])))


def _average(label: str, ours: Measured, paper: float) -> Entry:
    return Entry(label, "average accuracy", ours, paper / 100, judge_score(ours, paper / 100, ROUNDING), per_cent)


def _table(name: str, title: str, entries: list[Entry], runs: PaperRuns, notes: tuple[str, ...]) -> Table:
    rules = (verdicts.RULES["cost"], verdicts.RULES["score"])
    whole = (_TOKENS, *notes, _MACHINE, UNKEPT, *rules, *runs.notes)
    return comparison_table(name, title, entries, whole, printed=_any_of_the_models(runs))


def _any_of_the_models(runs: PaperRuns) -> bool:
    return bool(runs.models())


def _large(value: float) -> str:
    return f"-{render.large(-value).text}" if value < 0 else render.large(value).text


def _three(value: float) -> str:
    return f"{value:.3g}"


__all__ = ["LAMBDAS", "TEACHERS", "cost_tables"]
