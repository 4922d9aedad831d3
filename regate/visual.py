"""Visual elision in sparse steps: which cells of a clip's grid the decoder gets. Not the paper's.

The visual tokens of a clip are the cells of a grid of frames, rows and columns. In a sparse step a part of them
stays, at its own positions; dense steps and evaluations see all of them. Which cells stay follows from the grid, the
step and the seed alone, in whole numbers on the CPU: every process and every resumed run chooses the same ones. Or it
follows from what the cells show (`regate.content`): then their number is settled here, and the cells once the
embeddings, or a layer's attention, are there.

Legend: B rows, S expanded length, D hidden size, m cells that are averaged, b blocks of them, v visual positions,
n cells of a clip.
"""

from __future__ import annotations

from functools import lru_cache
from math import ceil
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor

from regate.content import ATTENTION, RULES, clip_of, first_places, several
from regate.errors import LayoutError
from regate.transfer import on_device
from regate.types import Choice, Kind, VisualKept

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from regate.config import VisualConfig
    from regate.types import Blocks, Clip, Grid, Layout

_BLOCKS: Final = {1: (1, 1, 1), 2: (2, 1, 1), 4: (1, 2, 2), 8: (2, 2, 2)}
"""Cells of a block -> its frames, rows and columns; at a grid's edge a block has what is left."""


def keep_visual(layout: Layout, config: VisualConfig, *, step: int, seed: int) -> VisualKept:
    """The visual positions that stay in a sparse step.

    Args:
        layout: on the CPU, with the grids of its clips.

    Raises:
        LayoutError: the layout does not say them, or they do not have as many cells as the row has visual positions.
    """
    visual_BS = layout.kind_BS == Kind.VISUAL
    # A target right behind a picture is predicted by its last cell.
    apart_BS = visual_BS & torch.nn.functional.pad(layout.target_BS[:, 1:], (0, 1), value=False)
    kept_BS = apart_BS.clone()
    length = layout.kind_BS.shape[1]
    blocks: list[tuple[Tensor, Tensor, Tensor]] = []
    clips: list[Clip] = []
    for row, grid, place_n in _clips(layout):
        if not grid.elidable:
            kept_BS[row, place_n] = True
        elif (config.how in RULES or config.how == ATTENTION) and config.keep:
            clip = clip_of(config.how, config.keep, grid.shape, place_n + row * length, apart_BS[row, place_n])
            kept_BS.view(-1)[first_places(clip)] = True
            clips.append(clip)
        else:
            first_b, block_n = _blocks_of(grid.shape, config.keep, config.how, step, seed)
            kept_BS[row, place_n[torch.from_numpy(first_b)]] = True
            if config.how == "pool" and config.keep:
                count = sum(len(firsts_b) for _, _, firsts_b in blocks)
                place_n = place_n + row * length
                blocks.append((place_n, torch.from_numpy(block_n) + count, place_n[torch.from_numpy(first_b)]))
    kept_v = kept_BS[visual_BS].nonzero().squeeze(1)
    joined = several(*(torch.cat(part) for part in zip(*blocks, strict=True))) if blocks else None
    choice = Choice(config.how, config.keep, tuple(clips), visual_BS) if clips else None
    return VisualKept(kept_BS, kept_v, joined, choice, config.from_layer)


def _clips(layout: Layout) -> Iterator[tuple[int, Grid, Tensor]]:
    """Row, grid and places in the row, int64, of every clip."""
    if layout.grids is None:
        raise LayoutError("visual elision needs the grids of the clips: this batch's layout has none")
    for row, grids in enumerate(layout.grids):
        place_v = (layout.kind_BS[row] == Kind.VISUAL).nonzero().squeeze(1)
        if len(place_v) != sum(grid.cells for grid in grids):
            raise LayoutError(
                f"row {row} has {len(place_v)} visual positions, and its grids have "
                f"{sum(grid.cells for grid in grids)} cells"
            )
        for grid, place_n in zip(grids, torch.split(place_v, [grid.cells for grid in grids]), strict=True):
            yield row, grid, place_n


@lru_cache(maxsize=512)
def _blocks_of(
    shape: tuple[int, int, int], keep: float, how: str, step: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The cells of a grid that stay, ascending, and, where blocks are averaged, the block of every cell.

    At least one cell stays, but none with 0.
    """
    cells = int(np.prod(shape))
    if keep == 0.0:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    if keep >= 1.0:
        every = np.arange(cells)
        return every, every
    t_n, r_n, c_n = (axis.reshape(-1) for axis in np.indices(shape))
    none = np.empty(0, np.int64)
    if how == "pool":
        frames, rows, columns = _BLOCKS[round(1 / keep)]
        wide, high = -(-shape[2] // columns), -(-shape[1] // rows)
        number_n = ((t_n // frames) * high + r_n // rows) * wide + c_n // columns
        _, first_b, block_n = np.unique(number_n, return_index=True, return_inverse=True)
        order = np.argsort(first_b)
        return first_b[order], np.argsort(order)[block_n]
    if how == "pattern":
        kept = np.flatnonzero(_pattern(round(1 / keep), t_n, r_n, c_n, step) == 0)
        return (kept if len(kept) else np.array([step % cells])), none
    if how == "frames":
        count = ceil(keep * shape[0])
        frame_k = (np.arange(count) * shape[0] // count + step) % shape[0]
        return np.flatnonzero(np.isin(t_n, frame_k)), none
    assert how == "random"
    count = ceil(keep * cells)
    return np.sort(np.random.default_rng([seed, step, *shape]).permutation(cells)[:count]), none


def _pattern(cells: int, t_n: Any, r_n: Any, c_n: Any, step: int) -> Any:
    """0 at one cell of every block of `cells`; another one in each frame and each step."""
    if cells == 1:
        return np.zeros_like(t_n)
    if cells == 2:
        return (t_n + r_n + c_n + step) % 2
    if cells == 4:
        return (2 * (r_n % 2) + c_n % 2 + t_n + step) % 4
    return (4 * (t_n % 2) + 2 * (r_n % 2) + c_n % 2 + t_n // 2 + step) % 8


def averaged(embeds_BSD: Tensor, blocks: Blocks) -> Tensor:
    """The embeddings with the mean of each block at its first cell; the sums are made in float32 or better."""
    device, flat = embeds_BSD.device, embeds_BSD.flatten(0, 1)
    member_mD = flat.index_select(0, on_device(blocks.member_m, device))
    member_mD = member_mD.to(torch.promote_types(flat.dtype, torch.float32))
    sum_bD = member_mD.new_zeros(blocks.first_b.shape[0], flat.shape[1])
    sum_bD = sum_bD.index_add(0, on_device(blocks.block_m, device), member_mD)
    mean_bD = sum_bD / on_device(blocks.size_b, device)[:, None]
    return flat.index_copy(0, on_device(blocks.first_b, device), mean_bD.to(flat.dtype)).view_as(embeds_BSD)
