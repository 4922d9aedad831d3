"""The claims of the paper (`claims` of results/paper/tables.yaml), each checked part by part on our runs.

The paper's side of a part is computed from its printed tables and not typed again.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import mean
from typing import TYPE_CHECKING, Final

from harness.analysis import verdicts
from harness.analysis.paper.numbers import GATED, MODELS, Paper
from harness.analysis.paper.runs import (
    BASELINE,
    EXTENDED,
    FAST,
    LAMBDA_0,
    LAMBDA_1,
    Measured,
    PaperRuns,
    device_hours,
    targets,
    teacher_hours,
)
from harness.analysis.runs import machine
from harness.common.numbers import percent
from harness.report import table as render
from harness.report.table import Cell, Column, Table
from harness.report.tables.paper.comparison import (
    UNKEPT,
    Entry,
    cost_entry,
    difference_entry,
    number,
    per_cent,
    signed,
    with_left_out,
)
from harness.report.tables.paper.costs import TEACHERS
from harness.report.tables.paper.efficiency import ARMS

if TYPE_CHECKING:
    from harness.analysis.verdicts import Verdict

MATCHED: Final = 0.001
"""The paper calls an accuracy matched that is within 0.1 points of the baseline's (51.9 against 52.0)."""
_CHAT_MATCHED: Final = 0.002
_POINTS: Final = signed(per_cent)
Parts = Callable[[PaperRuns], list[Entry]]
"""How a claim is checked."""


def claims_table(runs: PaperRuns) -> Table:
    """Every claim, a row a part; a claim is as good as its worst part."""
    columns = (
        Column("claim", ("claim",), right=False),
        Column("part", ("part",), right=False),
        Column("ours", ("ours",)),
        Column("interval of ours", ("low", "high")),
        Column("paper", ("paper",)),
        Column("difference", ("difference",)),
        Column("verdict", ("verdict",), right=False),
        Column("claim's verdict", ("claim_verdict",), right=False),
    )
    rows = []
    for claim in runs.paper.claims:
        parts = CLAIMS[claim["id"]](runs)
        whole = claim_verdict(parts)
        for place, part in enumerate(parts):
            rows.append(
                (
                    Cell(f"{claim['id']}: {claim['text']}" if place == 0 else "", (claim["id"],)),
                    render.label(part.quantity, *part.ours.runs),
                    number(part.ours.value, part.show),
                    part.bounds(),
                    number(part.paper, part.show),
                    number(part.difference, part.show),
                    render.label(part.verdict or ""),
                    Cell(whole if place == 0 else "", (whole,)),
                )
            )
    notes = (
        "Accuracy in points of per cent, other parts as a part of the baseline's; hours of two arms are judged where "
        "both ran on one kind of machine. A claim is as good as its worst part: missing, differs, undecided, within "
        "noise, reproduced. The intervals are not corrected for the number of claims.",
        UNKEPT,
        verdicts.RULES["difference"],
        verdicts.RULES["not_worse"],
        verdicts.RULES["cost"],
        *runs.notes,
    )
    return Table("paper/claims", "Claims of the paper", columns, tuple(rows), notes, printed=bool(runs.models()))


def claim_verdict(parts: list[Entry]) -> Verdict:
    return verdicts.worst(part.verdict or "missing" for part in parts)


def _matched(model: str, margin: float) -> Parts:
    """The fast run is as accurate as the baseline, in a part of its hours and its tokens."""

    def parts(runs: PaperRuns) -> list[Entry]:
        return [_not_worse(runs, model, margin), _hours_part(runs, model, FAST), _tokens_part(runs, model, FAST)]

    return parts


def _not_worse(runs: PaperRuns, model: str, margin: float) -> Entry:
    ours = runs.difference(model, FAST, BASELINE, "mvbench")
    verdict = verdicts.of_claim("not_worse", ours.interval, margin=margin)
    paper = _accuracy(runs.paper, model, FAST) - _accuracy(runs.paper, model, BASELINE)
    if ours.interval is None and ours.value is not None and abs(ours.value - paper) < 1e-9:
        verdict = "reproduced"
    quantity = with_left_out(f"MVBench, fast - baseline, not worse by {100 * margin:.1f}", ours)
    return Entry(model, quantity, ours, round(paper, 6), verdict, _POINTS)


def _gain(runs: PaperRuns, model: str) -> Entry:
    paper = round(_accuracy(runs.paper, model, EXTENDED) - _accuracy(runs.paper, model, BASELINE), 6)
    ours = runs.difference(model, EXTENDED, BASELINE, "mvbench")
    return difference_entry(model, "MVBench, extended - baseline", ours, paper, _POINTS)


def _accuracy(paper: Paper, model: str, arm: str) -> float:
    """MVBench of a run of the paper, in parts of one."""
    printed = paper.costs("table4_efficiency_v1")
    label = model + ARMS[arm]
    if label in printed:
        return float(printed[label]["MVBench"]) / 100
    value = paper.reported(model + (GATED if arm == EXTENDED else ""), "mvbench")
    assert value is not None, label
    return value


def _printed(paper: Paper, model: str, arm: str, column: str) -> float:
    return float(paper.costs("table4_efficiency_acl")[model + ARMS[arm]][column])


def _tokens_part(runs: PaperRuns, model: str, arm: str) -> Entry:
    paper = _printed(runs.paper, model, arm, "tokens") / _printed(runs.paper, model, BASELINE, "tokens")
    ours = runs.ratio(model, arm, BASELINE, targets)
    return cost_entry(model, f"targets computed, {arm} / baseline", ours, paper, _ratio)


def _reduction_part(runs: PaperRuns, model: str) -> Entry:
    part = _tokens_part(runs, model, EXTENDED)
    assert part.paper is not None
    value = None if part.ours.value is None else 1 - part.ours.value
    return cost_entry(
        model, "reduction of targets computed", Measured(value, runs=part.ours.runs), 1 - part.paper, percent
    )


def _hours_part(runs: PaperRuns, model: str, arm: str) -> Entry:
    paper = _printed(runs.paper, model, arm, "train_gpu_hours") / _printed(
        runs.paper, model, BASELINE, "train_gpu_hours"
    )
    ours = runs.ratio(model, arm, BASELINE, device_hours)
    machines = {machine(run) for compared in (arm, BASELINE) for run in runs.of(model, compared).values()}
    return cost_entry(model, f"train hours, {arm} / baseline", ours, paper, _ratio, judged=len(machines) <= 1)


def _extended(model: str, *, hours: bool) -> Parts:
    """The extended run is more accurate than the baseline, at fewer targets and, if `hours`, in less time."""

    def parts(runs: PaperRuns) -> list[Entry]:
        entries = [_gain(runs, model), _reduction_part(runs, model)]
        return [*entries, _hours_part(runs, model, EXTENDED)] if hours else entries

    return parts


def _average_tokens(runs: PaperRuns) -> list[Entry]:
    parts = [_tokens_part(runs, model, FAST) for model in MODELS.values()]
    values = [part.ours.value for part in parts if part.ours.value is not None]
    complete = len(values) == len(parts)
    ours = Measured(mean(values), runs=tuple(run for p in parts for run in p.ours.runs)) if complete else Measured()
    paper = mean(part.paper for part in parts if part.paper is not None)
    return [cost_entry("", "targets computed, fast / baseline, mean over the models", ours, paper, _ratio)]


def _lambda(runs: PaperRuns) -> list[Entry]:
    printed = {row: values["MVBench"] / 100 for row, values in runs.paper.costs("table5_lambda_v1").items()}
    return [
        difference_entry(
            "VideoLLaMA2",
            f"MVBench, lambda 0.5 - lambda {label}",
            runs.difference("VideoLLaMA2", EXTENDED, arm, "mvbench"),
            round(printed["0.5"] - printed[label], 6),
            _POINTS,
        )
        for label, arm in (("0.0", LAMBDA_0), ("1.0", LAMBDA_1))
    ]


def _teacher(runs: PaperRuns) -> list[Entry]:
    printed = {row: values["avg_accuracy"] / 100 for row, values in runs.paper.costs("ablation_teacher_acl").items()}
    own = "Qwen2-7B"
    return [
        difference_entry(
            "VideoLLaMA2",
            f"average accuracy, teacher {own} - {label}",
            runs.average("VideoLLaMA2", TEACHERS[own], TEACHERS[label]),
            round(printed[own] - printed[label], 6),
            _POINTS,
        )
        for label in printed
        if label != own
    ]


def _teacher_cost(runs: PaperRuns) -> list[Entry]:
    entries = []
    for model in MODELS.values():
        teacher, base = runs.cost(model, EXTENDED, teacher_hours), runs.cost(model, BASELINE, device_hours)
        ours = Measured()
        if teacher.value is not None and base.value:
            ours = Measured(teacher.value / base.value, runs=(*teacher.runs, *base.runs))
        paper = _printed(runs.paper, model, EXTENDED, "teacher_gpu_hours") / _printed(
            runs.paper, model, BASELINE, "train_gpu_hours"
        )
        entries.append(cost_entry(model, f"{model}: teacher pass / baseline's training", ours, paper, percent))
    return entries


def _only(index: int, parts: Parts) -> Parts:
    """The accuracy and one of the costs of a claim of three parts."""
    return lambda runs: [parts(runs)[0], parts(runs)[index]]


CLAIMS: Final[dict[str, Parts]] = {
    "llama2-matched-time": _only(1, _matched("VideoLLaMA2", MATCHED)),
    "llama2-matched-tokens": _only(2, _matched("VideoLLaMA2", MATCHED)),
    "llama2-extended": _extended("VideoLLaMA2", hours=True),
    "chat2-matched": _matched("VideoChat2", _CHAT_MATCHED),
    "chat2-extended": _extended("VideoChat2", hours=False),
    "internvl-extended": _extended("InternVL3.5", hours=True),
    "average-matched-tokens": _average_tokens,
    "lambda-combined": _lambda,
    "teacher-aligned": _teacher,
    "teacher-cost": _teacher_cost,
}
"""Id of a claim in tables.yaml -> how it is checked."""


def _ratio(value: float) -> str:
    return f"{value:.3f}"


__all__ = ["CLAIMS", "claim_verdict", "claims_table"]
