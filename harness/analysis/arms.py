"""The runs of a suite by arm and seed, and what is read from them: scores, differences within a seed, units."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import mean
from typing import TYPE_CHECKING, Final

from harness.analysis.runs import Results, Run, asked_otherwise, scored_units
from harness.analysis.seeds import Spread, paired_spread
from harness.common.errors import DataError
from harness.common.hashing import digest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from harness.config.suite import Suite

EQUAL_TARGETS: Final = 0.1
"""An arm without a gate is one at equal targets where its targets computed differ by less than this part."""


@dataclass(frozen=True, slots=True)
class Arms:
    """The runs of a suite by arm and seed.

    Attributes:
        runs: arm -> seed -> run, in the order of the arms.
        baseline: the arm that differences are taken against; "" where none is known.
    """

    name: str
    runs: dict[str, dict[int, Run]]
    baseline: str
    _units: dict[tuple[str, str], dict[int, Results]] = field(default_factory=dict, repr=False, compare=False)

    def scores(self, arm: str, benchmark: str, ability: str | None = None) -> dict[int, float]:
        """seed -> score after the last step, of the whole benchmark or one ability; seeds without it left out."""
        scores = {}
        for seed, run in self.runs.get(arm, {}).items():
            evaluation = run.last(benchmark)
            if evaluation is None:
                continue
            values = [task["value"] for task in evaluation["tasks"] if task["ability"] == ability]
            if ability is None or values:
                scores[seed] = float(evaluation["mean"]["value"] if ability is None else values[0])
        return scores

    def difference(self, first: str, second: str, benchmark: str) -> Spread | None:
        """`first` minus `second`, paired by seed, over the seeds in which both were asked alike."""
        left_out = self.asked_otherwise(first, second, benchmark)
        scores = {
            seed: score for seed, score in self.scores(second, benchmark).items() if seed not in left_out
        }
        return paired_spread(scores, self.scores(first, benchmark))

    def asked_otherwise(self, first: str, second: str, benchmark: str) -> dict[int, list[str]]:
        """seed -> what differs in how the two arms were asked, of the seeds where something does. These are no pairs:
        a difference between two ways of asking is none between two arms."""
        others = self.runs.get(second, {})
        differing = {
            seed: asked_otherwise(run, others[seed], benchmark)
            for seed, run in self.runs.get(first, {}).items()
            if seed in others
        }
        return {seed: reasons for seed, reasons in differing.items() if reasons}

    def units(self, arm: str, benchmark: str) -> dict[int, Results]:
        """seed -> units of the last evaluation that count; seeds whose items are not kept left out."""
        key = (arm, benchmark)
        if key not in self._units:
            by_seed = {}
            for seed, run in self.runs.get(arm, {}).items():
                evaluation = run.last(benchmark)
                items = run.items(evaluation) if evaluation else None
                if evaluation and items is not None:
                    by_seed[seed] = scored_units(evaluation, items)
            self._units[key] = by_seed
        return self._units[key]

    def equal_targets(self, arm: str) -> str | None:
        """The arm without a gate, other than the baseline, that computed nearly as many targets."""
        targets = mean(scored(run) for run in self.runs[arm].values())
        others = [
            (abs(mean(scored(run) for run in runs.values()) / targets - 1), name)
            for name, runs in self.runs.items()
            if name not in (arm, self.baseline) and all(run.gate is None for run in runs.values())
        ]
        near = [candidate for candidate in others if candidate[0] < EQUAL_TARGETS]
        return min(near)[1] if near and any(run.gate for run in self.runs[arm].values()) else None


def group_by_arm(name: str, runs: Sequence[Run], suite: Suite | None) -> Arms:
    """Runs by arm and seed.

    Raises:
        DataError: two runs of an arm have the same seed, or one was not trained.
    """
    by_arm: dict[str, dict[int, Run]] = {}
    for run in sorted(runs, key=lambda run: (run.seed, run.id)):
        arm = run.suite[1] if run.suite else run.arm
        if not run.trained:
            raise DataError(f"{run.folder}: is an arm of suite {name} and was not trained")
        if run.seed in (by_seed := by_arm.setdefault(arm, {})):
            raise DataError(
                f"{run.folder}: a second run of arm {arm} of suite {name} with seed {run.seed}, beside "
                f"{by_seed[run.seed].id}",
                hint="move the one that is out of date elsewhere",
            )
        by_seed[run.seed] = run
    known = list(suite.arms) if suite is not None else []
    order = [arm for arm in known if arm in by_arm] + sorted(by_arm.keys() - set(known))
    return Arms(name, {arm: by_arm[arm] for arm in order}, suite.baseline if suite else _baseline(by_arm))


def seed_groups(runs: Iterable[Run]) -> list[Arms]:
    """Runs whose recipes are equal but for name, gate and seed, where one of them was made with several seeds. An arm
    is a recipe's name; where one name has several gates, its gate's digest distinguishes them."""
    families: dict[str, list[Run]] = {}
    for run in sorted((run for run in runs if run.trained), key=lambda run: run.id):
        families.setdefault(run.shared("name", "gate", "seed"), []).append(run)
    groups = []
    for members in families.values():
        gates: dict[str, set[str]] = {}
        for run in members:
            gates.setdefault(run.name, set()).add(digest(run.gate))
        by_arm: dict[str, dict[int, Run]] = {}
        for run in members:
            arm = run.name if len(gates[run.name]) == 1 else f"{run.name} {digest(run.gate)[:8]}"
            by_arm.setdefault(arm, {})[run.seed] = run
        if max(len(by_seed) for by_seed in by_arm.values()) > 1:
            baseline = _baseline(by_arm)
            order = sorted(by_arm, key=lambda arm: (arm != baseline, arm))
            groups.append(Arms(baseline or order[0], {arm: by_arm[arm] for arm in order}, baseline))
    return sorted(groups, key=lambda arms: arms.name)


def _baseline(by_arm: Mapping[str, dict[int, Run]]) -> str:
    """The arm without a gate that computed most targets; "" where every arm has one."""
    free = {arm: runs for arm, runs in by_arm.items() if all(run.gate is None for run in runs.values())}
    return max(free, key=lambda arm: (mean(scored(run) for run in free[arm].values()), arm), default="")


def scored(run: Run) -> int:
    """Targets computed in training."""
    return int(run.totals["counts"]["scored"])


__all__ = ["EQUAL_TARGETS", "Arms", "group_by_arm", "scored", "seed_groups"]
