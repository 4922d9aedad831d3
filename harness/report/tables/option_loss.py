"""A suite by its second measure: the cross entropy of the right option, with differences paired by seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from harness.analysis.option_loss import loss_by_seed
from harness.analysis.seeds import p_value, paired_spread, spread
from harness.analysis.statistics import holm
from harness.report import table as render
from harness.report.table import Cell, Column, Table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from harness.analysis.arms import Arms
    from harness.analysis.seeds import Spread
    from harness.config.suite import Claim

_COLUMNS: Final = (
    Column("arm, or difference of arms", ("first", "second"), right=False),
    Column("seeds", ("seeds", "seeds_left_out")),
    Column("cross entropy: mean ± sd", ("mean", "sd")),
    Column("difference", tuple(f"difference{end}" for end in ("", "_low", "_high", "_least", "_most"))),
    Column("p (Holm)", ("p", "p_holm")),
)


@dataclass(frozen=True, slots=True)
class _Row:
    """An arm (`second` is ""), or what two arms differ by, with its p value as it is and corrected."""

    first: str
    second: str
    difference: Spread | None = None
    test: tuple[float, float] | None = None


def option_loss_table(arms: Arms, claims: Sequence[Claim], benchmark: str) -> Table | None:
    """One row an arm with its difference to the baseline, and one for each two arms that only a claim compares; None
    where no arm's items hold the losses of their options."""
    values = {arm: loss_by_seed(arms, arm, benchmark) for arm in arms.runs}
    if not any(values.values()):
        return None
    differences = {pair: _difference(arms, values, *pair, benchmark) for pair in _pairs(arms, claims)}
    p_values = {pair: p for pair, by_seed in differences.items() if by_seed and (p := p_value(by_seed)) is not None}
    corrected = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    compared = {first for first, second in differences if second == arms.baseline}
    rows = [_Row(arm, "") for arm in arms.runs if arm not in compared]
    rows += [
        _Row(*pair, by_seed, (p_values[pair], corrected[pair]) if pair in corrected else None)
        for pair, by_seed in differences.items()
    ]
    notes = (
        "Nats; less is better. The cross entropy of the right option among the options of its question, under the "
        "softmax of their summed log-likelihoods, after the last step; abilities are combined as for the score.",
        f"Differences are paired by seed, with 95 % t intervals over the seeds; those of an arm are taken against "
        f"{arms.baseline or 'no arm'}. p: two-sided, Student's t over the seeds; in brackets corrected for the "
        "number of differences in this table (Holm). Claims are decided by the accuracy, not by this measure.",
    )
    title = f"Suite {arms.name}: cross entropy of the right option on {benchmark}"
    cells = tuple(_cells(arms, values, row, benchmark) for row in rows)
    return Table(f"suite_{arms.name}_option_loss_{benchmark}", title, _COLUMNS, cells, notes)


def _pairs(arms: Arms, claims: Sequence[Claim]) -> list[tuple[str, str]]:
    """Every arm against the baseline, then what the claims compare beside that; of the arms that were run."""
    pairs = [(arm, arms.baseline) for arm in arms.runs if arm != arms.baseline]
    pairs += [(claim.first, claim.second) for claim in claims]
    return [pair for pair in dict.fromkeys(pairs) if pair[0] in arms.runs and pair[1] in arms.runs]


def _difference(
    arms: Arms, values: Mapping[str, Mapping[int, float]], first: str, second: str, benchmark: str
) -> Spread | None:
    """`first` minus `second` over the seeds in which both were asked alike."""
    left_out = arms.asked_otherwise(first, second, benchmark)
    return paired_spread({s: value for s, value in values[second].items() if s not in left_out}, values[first])


def _cells(arms: Arms, values: Mapping[str, Mapping[int, float]], row: _Row, benchmark: str) -> tuple[Cell, ...]:
    alone = row.second in ("", arms.baseline)
    own = spread(list(values[row.first].values())) if alone and values[row.first] else None
    of_seeds = row.difference if row.second else own
    skipped = len(arms.asked_otherwise(row.first, row.second, benchmark)) if row.second else 0
    count = of_seeds.n if of_seeds else 0
    name = row.first if alone else f"{row.first} - {row.second}"
    runs = [run.id for arm in (row.first, row.second) for run in arms.runs.get(arm, {}).values()]
    return (
        Cell(name, (row.first, row.second), runs=render.label(name, *runs).runs),
        Cell(f"{count} ({skipped} left out)" if skipped else str(count), (count, skipped)),
        _COLUMNS[2].empty() if own is None else _mean(own.mean, own.sd),
        _signed(row.difference) if row.second else _COLUMNS[3].empty(),
        Cell(f"{row.test[0]:.2g} ({row.test[1]:.2g})", row.test) if row.test else _COLUMNS[4].empty(),
    )


def _signed(difference: Spread | None) -> Cell:
    if difference is None:
        return _COLUMNS[3].missing()
    mean, low, high = difference.mean, difference.low, difference.high
    interval = "" if low is None or high is None else f" [{low:+.3f}, {high:+.3f}]"
    return Cell(f"{mean:+.3f}{interval}", (mean, low, high, difference.least, difference.most))


def _mean(mean: float, sd: float | None) -> Cell:
    return Cell(f"{mean:.3f}" + ("" if sd is None else f" ± {sd:.3f}"), (mean, sd))


__all__ = ["option_loss_table"]
