"""Which samples each optimizer step sees: a pure function of the step, so nothing has to be saved to resume."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from harness.common.errors import DataError, RecipeError
from harness.data.dealing import deal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


class Sizes(Protocol):
    """What samples, named by their index, weigh."""

    def whole(self, index_N: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        """Positions of each sample."""
        ...

    def executed(self, index_N: NDArray[np.integer[Any]], step: int) -> NDArray[np.float64]:
        """Those that optimizer step `step` is expected to compute."""
        ...


class Sampler:
    """A shuffled pass over the samples in every epoch, cut into global batches, and those into ranks' parts.

    No sample comes twice in an epoch. The few that do not fill a last global batch are left out, others in each
    epoch. The order depends on seed and epoch alone: not on ranks, loading processes or resuming.

    With groups (one for each medium), the samples of a global batch are all of one group: each group is shuffled and
    cut into global batches, and the batches of all groups are shuffled. So every rank is at the same group in every
    micro-batch, and a group has steps in proportion to its size, as with VideoChat2's loaders.

    A global batch is cut into micro-batches first, which are dealt to the processes then: which samples share one
    does not depend on the number of processes. They are dealt in turn, or with `sizes` so that the processes have
    like numbers of positions to execute; that changes nothing but who computes what.

    Args:
        num_samples: size of the data set; samples are named by their index.
        global_batch: samples of an optimizer step, over all ranks and their accumulation.
        micro_batch: samples of one forward pass of one rank.
        world, rank: number of processes, and which one this is.
        groups: the group of each sample; None mixes them all.
        sizes: what the samples weigh; None deals in turn.
        level: cut a global batch, too, so that its micro-batches have like numbers of positions; needs `sizes`.

    Raises:
        RecipeError: the global batch is not a multiple of world x micro_batch.
        DataError: there are fewer samples than a global batch, in all or in a group.
    """

    def __init__(
        self,
        num_samples: int,
        *,
        global_batch: int,
        micro_batch: int,
        seed: int,
        world: int = 1,
        rank: int = 0,
        groups: NDArray[np.uint8] | None = None,
        sizes: Sizes | None = None,
        level: bool = False,
    ) -> None:
        share = world * micro_batch
        if global_batch % share:
            raise RecipeError(
                f"train.global_batch {global_batch} is not a multiple of {world} processes x "
                f"train.micro_batch {micro_batch}",
                hint=f"take a multiple of {share}",
            )
        assert 0 <= rank < world, (rank, world)
        kind = _index_type(num_samples)
        self._groups = (
            None
            if groups is None
            else [np.flatnonzero(groups == value).astype(kind, copy=False) for value in np.unique(groups)]
        )
        of_groups = [num_samples] if self._groups is None else [len(group) for group in self._groups]
        self.steps_per_epoch = steps_per_epoch(of_groups, global_batch)
        self.num_samples, self.seed = num_samples, seed
        self.global_batch, self.micro_batch = global_batch, micro_batch
        self.world, self.rank = world, rank
        assert sizes is not None or not level
        self._sizes, self._level = sizes, level
        self._numbered: tuple[int, list[int]] = (-1, [])
        self._epoch = -1
        self._order: NDArray[Any] = np.empty(0, kind)

    @property
    def micro_batches(self) -> int:
        """Micro-batches of this rank in one step: the accumulation."""
        return self.global_batch // (self.world * self.micro_batch)

    def epoch_of(self, step: int) -> int:
        return step // self.steps_per_epoch

    def window(self, step: int) -> list[list[int]]:
        """Indices of the samples of this rank's micro-batches in optimizer step `step`, counted from 0."""
        rows = self._cut(step)
        return [[int(index) for index in rows[number]] for number in self._dealt(rows, step)]

    def number(self, step: int, place: int) -> int:
        """Which of the global batch's micro-batches, counted from 0, stands at `place` of `window`."""
        if self._sizes is None:
            return place * self.world + self.rank
        if step != self._numbered[0]:
            self._numbered = step, self._dealt(self._cut(step), step)
        return self._numbered[1][place]

    def _cut(self, step: int) -> NDArray[Any]:
        """All micro-batches of a step, a row each."""
        epoch, place = divmod(step, self.steps_per_epoch)
        batch = self._permutation(epoch)[place * self.global_batch : (place + 1) * self.global_batch]
        drawn = batch.reshape(-1, self.micro_batch)
        if self._sizes is None or not self._level:
            return drawn
        level = batch[deal(self._sizes.whole(batch), len(drawn))]
        longest = (self._sizes.whole(rows).sum(axis=1).max() for rows in (level, drawn))
        return level if next(longest) < next(longest) else drawn

    def _dealt(self, rows: NDArray[Any], step: int) -> list[int]:
        """The numbers of this rank's."""
        if self._sizes is None:
            return list(range(self.rank, len(rows), self.world))
        executed = self._sizes.executed(rows.reshape(-1), step).reshape(rows.shape).sum(axis=1)
        return [int(number) for number in deal(executed, self.world)[self.rank]]

    def _permutation(self, epoch: int) -> NDArray[np.int64]:
        if epoch != self._epoch:
            rng = np.random.default_rng([self.seed, epoch])
            # The draws are those of rng.permutation(num_samples), whatever the type of the indices.
            if self._groups is None:
                self._order = rng.permutation(np.arange(self.num_samples, dtype=self._order.dtype))
            else:
                self._order = self._by_group(rng)
            self._epoch = epoch
        return self._order

    def _by_group(self, rng: np.random.Generator) -> NDArray[Any]:
        assert self._groups is not None
        batches = []
        for group in self._groups:
            whole = len(group) // self.global_batch * self.global_batch
            batches.append(rng.permutation(group)[:whole].reshape(-1, self.global_batch))
        order_NG = np.concatenate(batches)
        return order_NG[rng.permutation(len(order_NG))].reshape(-1)


def _index_type(num_samples: int) -> type[np.integer[Any]]:
    """Every loading process holds the order of its epoch: half as many bytes where they suffice."""
    return np.int32 if num_samples < 1 << 31 else np.int64


def steps_per_epoch(sizes: Sequence[int], global_batch: int) -> int:
    """Global batches in an epoch over groups of these sizes.

    Raises:
        DataError: a group does not fill one, so none of its samples would ever be seen.
    """
    small = min(sizes, default=0)
    if small < global_batch:
        several = f", the smallest of {len(sizes)} media," if len(sizes) > 1 else ""
        raise DataError(
            f"{small} samples{several} do not fill one global batch of {global_batch}",
            hint="lower train.global_batch or bring more data"
            + (", or mix the media with data.batches=mixed" if several else ""),
        )
    return sum(size // global_batch for size in sizes)
