"""The rules that turn a number of ours and one of the paper, or a claim, into a word.

Five words. *missing*: no run of ours has the number. *reproduced*, *differs*, *within noise* and *undecided* by the
rule of its kind, each of which stands in `RULES` as it is written below the tables. Neither of the last two is a
success: *within noise* says that the runs show no sign against the paper's number or the claim and are not precise
enough to confirm it, *undecided* that their mean is against it and they are not precise enough to refute it.

That a number is the paper's is shown by an interval that lies within a margin, not by one that is wide enough to hold
it: few items or seeds then lead to *within noise* or *undecided* and never to *reproduced*. The margins were set
before any run of the paper's models was made here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable

    from harness.analysis.statistics import Interval

Verdict = Literal["reproduced", "within noise", "undecided", "differs", "missing"]
Expect = Literal["better", "not_worse"]

SCORE_MARGIN: Final = 0.03
"""Parts of one: how far a score may lie from the paper's and still be called the same. About the half width of the
difference of two runs on two thousand questions."""
DIFFERENCE_MARGIN: Final = 0.01
"""Parts of one: how far a difference of two arms may lie from zero and still be called none."""
POINTS: Final = 2000.0
"""The full score of MME's perception part, of which the margins are parts where a score is in points."""
COST_EXACT: Final = 0.01
COST_NOISE: Final = 0.05
"""Parts of the paper's number. A cost has no sampling error; the rounding of each sample's budget and the unknown
number of steps move a part of the targets by one or two hundredths."""
RULES: Final = {
    "score": "Score against the paper's: judged by the 95 % interval of the difference ours - paper, taking the "
    "paper's run as uncertain as one of ours and unpaired, widened by half of its last printed digit, against a "
    f"margin of {100 * SCORE_MARGIN:g} points ({POINTS * SCORE_MARGIN:g} of MME's). Reproduced where the interval "
    "lies within the margin; differs where it leaves out zero and the difference lies beyond the margin; within "
    "noise where it holds zero and the difference lies within the margin; else undecided.",
    "difference": "Difference of two arms: reproduced where our 95 % interval lies wholly on the side of zero where "
    "the paper's difference lies, differs where it lies wholly on the other side; else within noise where our "
    "difference is on the paper's side, and undecided where it is not; the size is not judged. Where the paper has "
    f"no difference, as a score, with a margin of {100 * DIFFERENCE_MARGIN:g} "
    f"({POINTS * DIFFERENCE_MARGIN:g} of MME's).",
    "cost": f"Cost (a ratio or a reduction): reproduced within {100 * COST_EXACT:g} % of the paper's number, within "
    f"noise within {100 * COST_NOISE:g} %, else differs. Hours and memory of another machine are not judged.",
    "better": "Better: reproduced where the lower end of the paired 95 % interval is above 0, differs where the "
    "upper end is below 0; else within noise where the mean is above 0, and undecided where it is not.",
    "not_worse": "Not worse: reproduced where the lower end of the paired 95 % interval is above minus the margin, "
    "differs where the upper end is below minus the margin; else within noise where the mean is above minus the "
    "margin, and undecided where it is not.",
}
ORDER: Final[tuple[Verdict, ...]] = ("reproduced", "within noise", "undecided", "differs", "missing")
"""From the best to the worst, as they are counted."""


def of_score(
    ours: float | None, paper: float | None, *, half_width: float | None, rounding: float = 0.0, full: float = 1.0
) -> Verdict:
    """Rule "score".

    Args:
        half_width: of the 95 % interval of the difference of two such runs; None where it is not known.
        rounding: half of the paper's last printed digit.
        full: the unit of the numbers, of which the margin is a part: 1, or `POINTS`.
    """
    if ours is None or paper is None or half_width is None:
        return "missing"
    return _equivalence(ours - paper, half_width + rounding, half_width + rounding, full * SCORE_MARGIN)


def of_difference(ours: Interval | None, paper: float | None, *, full: float = 1.0) -> Verdict:
    """Rule "difference"; `full` as for `of_score`."""
    if ours is None or paper is None:
        return "missing"
    if paper == 0.0:
        below, above = ours.value - ours.low, ours.high - ours.value
        return _equivalence(ours.value, below, above, full * DIFFERENCE_MARGIN)
    value, low, high = (ours.value, ours.low, ours.high) if paper > 0 else (-ours.value, -ours.high, -ours.low)
    if low > 0 or high < 0:
        return "reproduced" if low > 0 else "differs"
    return "within noise" if value > 0 else "undecided"


def _equivalence(difference: float, below: float, above: float, margin: float) -> Verdict:
    """Whether a difference is none, up to a margin; its interval reaches so far below and above it."""
    low, high = difference - below, difference + above
    if -margin <= low and high <= margin:
        return "reproduced"
    holds_zero = low <= 0.0 <= high
    if abs(difference) > margin:
        return "undecided" if holds_zero else "differs"
    return "within noise" if holds_zero else "undecided"


def of_cost(ours: float | None, paper: float | None) -> Verdict:
    """Rule "cost"."""
    if ours is None or paper is None:
        return "missing"
    away = abs(ours - paper)
    if away <= COST_EXACT * abs(paper):
        return "reproduced"
    return "within noise" if away <= COST_NOISE * abs(paper) else "differs"


def of_claim(expect: Expect, ours: Interval | None, *, margin: float = 0.0) -> Verdict:
    """Rules "better" and "not_worse", on the interval of first minus second.

    Args:
        margin: for "not_worse", how much worse still counts as not worse; not negative.
    """
    if ours is None:
        return "missing"
    bound = bound_of(expect, margin)
    if ours.low > bound or ours.high < bound:
        return "reproduced" if ours.low > bound else "differs"
    return "within noise" if ours.value > bound else "undecided"


def bound_of(expect: Expect, margin: float) -> float:
    """What the difference of a claim must exceed."""
    return 0.0 if expect == "better" else -margin


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """The verdict of a claim of several parts: missing before differs before undecided before within
    noise before reproduced."""
    return max(verdicts, key=ORDER.index, default="missing")


__all__ = [
    "ORDER",
    "POINTS",
    "RULES",
    "Expect",
    "Verdict",
    "bound_of",
    "of_claim",
    "of_cost",
    "of_difference",
    "of_score",
    "worst",
]
