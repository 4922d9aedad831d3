"""The rules that turn a number of ours and one of the paper, or a claim, into a word.

Four words. *missing*: no run of ours has the number. *reproduced*, *within noise* and *differs* by the rule of its
kind, each of which stands in `RULES` as it is written below the tables. "Within noise" is no success: it says that
these runs cannot tell.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable

    from harness.analysis.statistics import Interval

Verdict = Literal["reproduced", "within noise", "differs", "missing"]
Expect = Literal["better", "not_worse"]

COST_EXACT: Final = 0.01
COST_NOISE: Final = 0.05
"""Parts of the paper's number. A cost has no sampling error; the rounding of each sample's budget and the unknown
number of steps move a part of the targets by one or two hundredths."""
RULES: Final = {
    "score": "Score against the paper's: reproduced where the paper's number lies in our 95 % interval (widened by "
    "half of its last printed digit); within noise where it lies outside by less than the smallest difference that "
    "two such runs, unpaired, would show with 80 % power; else differs.",
    "difference": "Difference of two arms: reproduced where our 95 % interval lies wholly on the side of zero where "
    "the paper's difference lies (where the paper has none: holds zero); differs where it lies wholly on the other "
    "side; else within noise. The size is not judged.",
    "cost": f"Cost (a ratio or a reduction): reproduced within {100 * COST_EXACT:g} % of the paper's number, within "
    f"noise within {100 * COST_NOISE:g} %, else differs. Hours and memory of another machine are not judged.",
    "better": "Better: reproduced where the lower end of the paired 95 % interval is above 0, differs where the "
    "upper end is below 0, else within noise.",
    "not_worse": "Not worse: reproduced where the lower end of the paired 95 % interval is above minus the margin, "
    "differs where the upper end is below minus the margin, else within noise.",
}
_ORDER: Final[tuple[Verdict, ...]] = ("missing", "differs", "within noise", "reproduced")


def of_score(
    ours: Interval | None, paper: float | None, *, detectable: float | None, rounding: float = 0.0
) -> Verdict:
    """Rule "score".

    Args:
        detectable: smallest difference between two such runs that would be found, in the unit of the numbers.
        rounding: half of the paper's last printed digit.
    """
    if ours is None or paper is None:
        return "missing"
    outside = max(ours.low - rounding - paper, paper - ours.high - rounding, 0.0)
    if outside == 0.0:
        return "reproduced"
    return "within noise" if detectable is not None and outside < detectable else "differs"


def of_difference(ours: Interval | None, paper: float | None) -> Verdict:
    """Rule "difference"."""
    if ours is None or paper is None:
        return "missing"
    if paper == 0.0:
        return "reproduced" if ours.low <= 0.0 <= ours.high else "differs"
    low, high = (ours.low, ours.high) if paper > 0 else (-ours.high, -ours.low)
    return "reproduced" if low > 0 else "differs" if high < 0 else "within noise"


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
    bound = 0.0 if expect == "better" else -margin
    return "reproduced" if ours.low > bound else "differs" if ours.high < bound else "within noise"


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """The verdict of a claim of several parts: missing before differs before within noise before reproduced."""
    return min(verdicts, key=_ORDER.index, default="missing")


__all__ = ["RULES", "Expect", "Verdict", "of_claim", "of_cost", "of_difference", "of_score", "worst"]
