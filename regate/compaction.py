"""Index maths of the compact execution: which active position stands where once the elided ones are left out.

Two arrangements of the same positions: `Compaction` keeps the rows apart and pads them to the longest, `Packing` puts
them one after the other into a single row without padding.

Legend: B rows, S expanded length, K active length (the longest row's), T active positions of all rows, D hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from regate.transfer import on_device


@dataclass(frozen=True, slots=True)
class Compaction:
    """Active positions of each row, gathered to the left and padded on the right.

    Attributes:
        index_BK: int64, original position of each compact one, ascending in a row; 0 on padding.
        valid_BK: bool, False on padding. A row without active positions has one valid entry, so that no
            attention row is empty; it is not scattered back.
        flat_n, kept_n: int64, the active positions in a flattened B x S array and in a flattened B x K one.
        shape: (B, S).
    """

    index_BK: Tensor
    valid_BK: Tensor
    flat_n: Tensor
    kept_n: Tensor
    shape: tuple[int, int]

    @property
    def full(self) -> bool:
        """Whether no row needed padding. Read on the CPU, before `to`."""
        return bool(self.valid_BK.all())

    def cu_seqlens(self) -> Tensor:
        """int32, B + 1 entries: where each row starts once the valid entries are packed into one."""
        lengths_B = self.valid_BK.sum(dim=1, dtype=torch.int32)
        return torch.nn.functional.pad(lengths_B.cumsum(0, dtype=torch.int32), (1, 0))

    def to(self, device: torch.device | str) -> Compaction:
        index_BK, valid_BK, flat_n, kept_n = (
            on_device(x, device) for x in (self.index_BK, self.valid_BK, self.flat_n, self.kept_n)
        )
        return Compaction(index_BK, valid_BK, flat_n, kept_n, self.shape)

    def gather(self, value: Tensor, dim: int = 1) -> Tensor:
        """The active positions of an array that has S at `dim` and B (or 1) before it."""
        rows = value.shape[dim - 1]
        if rows != self.index_BK.shape[0]:
            value = value.expand(*value.shape[: dim - 1], self.index_BK.shape[0], *value.shape[dim:])
        index = self.index_BK.view(*[1] * (dim - 1), *self.index_BK.shape, *[1] * (value.dim() - dim - 1))
        shape = (*value.shape[:dim], self.index_BK.shape[1], *value.shape[dim + 1 :])
        return value.gather(dim, index.expand(shape))

    def scatter(self, compact_BKD: Tensor, into_BSD: Tensor) -> Tensor:
        """`into_BSD` with the active positions replaced: the elided ones keep what they hold there."""
        rows_nD = compact_BKD.flatten(0, 1).index_select(0, self.kept_n)
        return into_BSD.flatten(0, 1).index_copy(0, self.flat_n, rows_nD.to(into_BSD.dtype)).view_as(into_BSD)


def compact(active_BS: Tensor, *, multiple: int = 1) -> Compaction:
    """The compaction of a mask of active positions, on the mask's device (normally the CPU).

    Args:
        active_BS: bool.
        multiple: K is rounded up to it (at most to S): fewer shapes for a compiled model.
    """
    rows, length = active_BS.shape
    count_B = active_BS.sum(dim=1)
    longest = max(int(count_B.max()), 1)
    width = min(-(-longest // multiple) * multiple, length)
    row_n, column_n = active_BS.nonzero(as_tuple=True)
    place_n = (active_BS.cumsum(dim=1) - 1)[row_n, column_n]
    index_BK = torch.zeros(rows, width, dtype=torch.int64, device=active_BS.device)
    index_BK[row_n, place_n] = column_n
    valid_BK = torch.arange(width, device=active_BS.device) < count_B.clamp(min=1)[:, None]
    return Compaction(index_BK, valid_BK, row_n * length + column_n, row_n * width + place_n, (rows, length))


@dataclass(frozen=True, slots=True)
class Packing:
    """Active positions of all rows in one row, row after row.

    Attributes:
        flat_T: int64, place of each packed position in a flattened B x S array; ascending but for the filling.
        lengths: active positions of each row that has any, in order, and last the filling if there is any: its
            entries stand for position 0 of the batch, see each other only, and are never scattered back.
        filling: entries that only round T up, 0 without.
        cu_seqlens: int32, where each of `lengths` starts and where the last ends.
        shape: (B, S).
    """

    flat_T: Tensor
    lengths: tuple[int, ...]
    filling: int
    cu_seqlens: Tensor
    shape: tuple[int, int]

    @property
    def longest(self) -> int:
        return max(self.lengths)

    @property
    def column_1T(self) -> Tensor:
        """int64, original place of each packed position in its row."""
        return (self.flat_T % self.shape[1])[None]

    def to(self, device: torch.device | str) -> Packing:
        flat_T, cu_seqlens = on_device(self.flat_T, device), on_device(self.cu_seqlens, device)
        return Packing(flat_T, self.lengths, self.filling, cu_seqlens, self.shape)

    def gather(self, value: Tensor, dim: int = 1) -> Tensor:
        """The packed positions of an array that has S at `dim` and B (or 1) before it; its B becomes 1.

        A mask is False on the filling.
        """
        if value.shape[dim - 1] != self.shape[0]:
            value = value.expand(*value.shape[: dim - 1], self.shape[0], *value.shape[dim:])
        packed = value.flatten(dim - 1, dim).index_select(dim - 1, self.flat_T)
        if value.dtype == torch.bool and self.filling:
            packed.narrow(dim - 1, packed.shape[dim - 1] - self.filling, self.filling).fill_(False)
        return packed.unsqueeze(dim - 1)

    def scatter(self, packed_1TD: Tensor, into_BSD: Tensor, read_n: Tensor | None = None) -> Tensor:
        """`into_BSD` with the active positions replaced: the elided ones keep what they hold there.

        Args:
            read_n: int64, the packed positions to put there, in place of all.
        """
        if read_n is None:
            count = self.flat_T.shape[0] - self.filling
            flat_n, rows_nD = self.flat_T[:count], packed_1TD[0, :count]
        else:
            flat_n, rows_nD = self.flat_T[read_n], packed_1TD[0].index_select(0, read_n)
        return into_BSD.flatten(0, 1).index_copy(0, flat_n, rows_nD.to(into_BSD.dtype)).view_as(into_BSD)

    def places_of(self, mask_BS: Tensor) -> Tensor:
        """int64, where the positions of a mask stand among the packed ones. All of them are active."""
        count = self.flat_T.shape[0] - self.filling
        return mask_BS.flatten()[self.flat_T[:count]].nonzero().squeeze(1)


def pack(active_BS: Tensor, *, multiple: int = 1) -> Packing:
    """The packing of a mask of active positions, on the mask's device (normally the CPU).

    Args:
        active_BS: bool.
        multiple: T is rounded up to it, by filling: fewer shapes for a compiled model. T is at least 1.
    """
    flat_n = active_BS.flatten().nonzero().squeeze(1)
    lengths = [count for count in active_BS.sum(dim=1).tolist() if count]
    total = flat_n.shape[0]
    filling = max(-(-total // multiple) * multiple, multiple) - total
    if filling:
        lengths.append(filling)
        flat_n = torch.cat([flat_n, flat_n.new_zeros(filling)])
    bounds = torch.tensor([0, *lengths], dtype=torch.int32, device=active_BS.device).cumsum(0, dtype=torch.int32)
    return Packing(flat_n, tuple(lengths), filling, bounds, (active_BS.shape[0], active_BS.shape[1]))
