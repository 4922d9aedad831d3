"""Cells that stay by what they show: rules that read the embeddings of a clip. Not the paper's.

Of each clip as many cells stay as can be said before the forward pass (`clip_of`), so that all counts, lengths and
FLOPs are known beforehand; which ones follows from what the projector says of them, without gradient (`chosen`), when
the decoder is called. Their places are read once a forward pass, which waits for the device.

Legend: B rows, S expanded length, D hidden size, n cells of a clip, t tokens that are left, s sources,
d destinations, m cells that are averaged, b blocks of them.
"""

from __future__ import annotations

from dataclasses import replace
from math import ceil
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor
from torch.nn.functional import normalize

from regate.transfer import on_device
from regate.types import Blocks, Clip

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from regate.types import Choice, VisualKept

ATTENTION: Final = "attention"
"""The value of `visual.how` by which cells leave above a layer (`most_attended`)."""
_WINDOW: Final = 4
"""Frames of a window of the temporal rule."""


def diverse(value_nD: Tensor, clip: Clip, keep: float) -> Tensor:
    """The cells that are least alike: DivPrune (arXiv 2503.02175), as DualSpeed trains with it.

    One after the other the cell whose smallest cosine distance to those chosen before is largest; the first is the
    one with the largest distance to its nearest neighbour. Cells that stay in any case are chosen before.
    """
    distance_nn = 1.0 - _cosine(value_nD, value_nD)
    # Two cells that are each other's nearest are equally far, whatever the last bits of the kernel say.
    distance_nn = distance_nn.triu() + distance_nn.triu(1).T
    apart_n = on_device(clip.apart_n, value_nD.device)
    chosen_n = apart_n.clone()
    if bool(clip.apart_n.any()):
        nearest_n = distance_nn.masked_fill(~apart_n, torch.inf).amin(dim=1)
    else:
        self_nn = torch.eye(len(value_nD), dtype=torch.bool, device=value_nD.device)
        nearest_n = distance_nn.masked_fill(self_nn, torch.inf).amin(dim=1)
    for count in range(int(clip.apart_n.sum()), clip.kept):
        next_1 = nearest_n.masked_fill(chosen_n, -torch.inf).argmax().view(1)
        chosen_n = chosen_n.index_fill(0, next_1, True)
        distance_n = distance_nn.index_select(0, next_1)[0]
        nearest_n = distance_n if count == 0 else torch.minimum(nearest_n, distance_n)
    return torch.where(chosen_n, torch.arange(len(value_nD), device=value_nD.device), -1)


def merge(value_nD: Tensor, clip: Clip, keep: float) -> Tensor:
    """The most similar cells merged: bipartite soft matching of ToMe (arXiv 2210.09461), before the decoder.

    In rounds, the tokens at odd places of what is left are destinations and the others sources; the sources that are
    most similar to a destination are merged into it, at most half of the tokens in a round, until as many are left as
    stay. A token is the mean of its cells. Cells that stay as they are take no part.
    """
    device = value_nD.device
    apart_n = on_device(clip.apart_n, device)
    owner_n = torch.arange(len(value_nD), device=device)
    left_t = on_device((~clip.apart_n).nonzero().squeeze(1), device)
    apart = int(clip.apart_n.sum())
    mean_nD, size_n = value_nD.clone(), value_nD.new_ones(len(value_nD))
    while len(left_t) > clip.kept - apart:
        source_s, into_d = left_t[::2], left_t[1::2]
        merged = min(len(left_t) - (clip.kept - apart), len(into_d))
        best_s, place_s = _cosine(mean_nD[source_s], mean_nD[into_d]).max(dim=1)
        order_s = best_s.argsort(descending=True, stable=True)
        gone_m, to_m = source_s[order_s[:merged]], into_d[place_s[order_s[:merged]]]
        sum_nD = (mean_nD * size_n[:, None]).index_add(0, to_m, mean_nD[gone_m] * size_n[gone_m, None])
        size_n = size_n.index_add(0, to_m, size_n[gone_m])
        mean_nD = sum_nD / size_n[:, None]
        forward_n = torch.arange(len(value_nD), device=device).index_copy(0, gone_m, to_m)
        owner_n = forward_n[owner_n]
        left_t = torch.cat([source_s[order_s[merged:]], into_d]).sort().values
    return torch.where(apart_n, torch.arange(len(value_nD), device=device), owner_n)


def temporal(value_nD: Tensor, clip: Clip, keep: float) -> Tensor:
    """The cells that change from frame to frame: temporal merging of DyCoke (arXiv 2411.15024).

    Of each window of four frames the first stays whole. Of the second and the fourth those cells stay that are least
    like the same cell one frame before, of the third those that are least like it in the first: the earlier cell
    stands for both, as in its code. A window that ends early has the frames that there are.
    """
    frames, rows, columns = clip.shape
    value_TnD = value_nD.view(frames, rows * columns, -1)
    apart_Tn = on_device(clip.apart_n, value_nD.device).view(frames, -1)
    chosen_Tn = torch.ones_like(apart_Tn)
    for frame, kept in enumerate(_kept_by_frame(clip.shape, clip.apart_n, keep)):
        if frame % _WINDOW == 0:
            continue
        before = frame - 2 if frame % _WINDOW == 2 else frame - 1
        alike_n = torch.nn.functional.cosine_similarity(value_TnD[before], value_TnD[frame], dim=1)
        order_n = alike_n.masked_fill(apart_Tn[frame], -torch.inf).argsort(stable=True)
        chosen_Tn[frame] = torch.zeros_like(chosen_Tn[frame]).index_fill(0, order_n[:kept], True)
    return torch.where(chosen_Tn.view(-1), torch.arange(len(value_nD), device=value_nD.device), -1)


RULES: Mapping[str, Callable[[Tensor, Clip, float], Tensor]] = {
    "diverse": diverse,
    "merge": merge,
    "temporal": temporal,
}
"""Values of `visual.how` that read the embeddings. Each is given the clip's embeddings [n, D] in float32 or better,
the clip and the part that stays, and says of each cell where it goes (int64 n): its own number for one that stays,
that of another one it is merged into, -1 for one that is left out."""


def clip_of(how: str, keep: float, shape: tuple[int, int, int], place_n: Tensor, apart_n: Tensor) -> Clip:
    """A clip, with the number of its cells that will stay.

    Args:
        keep: above 0; at least one cell stays.
        place_n, apart_n: as `Clip`.
    """
    cells, apart = len(place_n), int(apart_n.sum())
    if how == "temporal":
        kept = sum(_kept_by_frame(shape, apart_n, keep))
    else:
        kept = max(ceil(keep * cells), apart)
        if how == "merge" and kept == apart < cells:
            kept += 1  # what is merged needs a place of its own
    return Clip(shape, place_n, apart_n, kept)


def _kept_by_frame(shape: tuple[int, int, int], apart_n: Tensor, keep: float) -> list[int]:
    """Cells of each frame that the temporal rule keeps, such that whole windows keep `keep` of theirs."""
    frames, cells = shape[0], shape[1] * shape[2]
    changing = round((_WINDOW * keep - 1) / (_WINDOW - 1) * cells)
    apart = apart_n.view(frames, cells).sum(dim=1).tolist()
    return [cells if frame % _WINDOW == 0 else max(changing, apart[frame]) for frame in range(frames)]


def first_places(clip: Clip) -> Tensor:
    """int64, as many places as stay: those that stay in any case, and of the others the first."""
    first_n = clip.apart_n.long().argsort(descending=True, stable=True)[: clip.kept]
    return clip.place_n[first_n]


def most_attended(kept: VisualKept, score_S: Tensor) -> VisualKept:
    """What stays by a layer's attention: of each clip the cells with the highest score. FastV (arXiv 2403.06764),
    which ranks all pictures of a row together.

    Args:
        kept: with a choice.
        score_S: float, of a flattened B x S array, on the CPU.
    """
    choice = kept.choice
    assert choice is not None
    kept_S = kept.kept_BS.flatten().clone()
    for clip in choice.clips:
        order_n = score_S[clip.place_n].masked_fill(clip.apart_n, torch.inf).argsort(descending=True, stable=True)
        kept_S[clip.place_n] = torch.zeros_like(clip.apart_n).index_fill(0, order_n[: clip.kept], True)
    kept_BS = kept_S.view_as(kept.kept_BS)
    return replace(kept, kept_BS=kept_BS, kept_v=kept_BS[choice.visual_BS].nonzero().squeeze(1), choice=None)


def chosen(kept: VisualKept, embeds_BSD: Tensor) -> VisualKept:
    """What stays, once the embeddings that enter the decoder are there. No gradient runs through the choice.

    Args:
        kept: with a choice.
    """
    choice = kept.choice
    assert choice is not None
    kept_S = kept.kept_BS.flatten().clone()
    members: list[Tensor] = []
    owners: list[Tensor] = []
    for clip, owner_n in zip(choice.clips, _owners(choice, embeds_BSD), strict=True):
        stays_n = owner_n == torch.arange(len(owner_n))
        assert int(stays_n.sum()) == clip.kept, (choice.how, clip.kept)
        kept_S[clip.place_n] = stays_n
        if bool((owner_n >= 0).all()) and not bool(stays_n.all()):
            members.append(clip.place_n)
            owners.append(clip.place_n[owner_n])
    kept_BS = kept_S.view_as(kept.kept_BS)
    kept_v = kept_BS[choice.visual_BS].nonzero().squeeze(1)
    blocks = None
    if members:
        first_b, block_m = torch.unique(torch.cat(owners), return_inverse=True)
        blocks = several(torch.cat(members), block_m, first_b)
    return replace(kept, kept_BS=kept_BS, kept_v=kept_v, blocks=blocks, choice=None)


def _owners(choice: Choice, embeds_BSD: Tensor) -> list[Tensor]:
    """Where each cell of each clip goes, on the CPU."""
    flat = embeds_BSD.detach().flatten(0, 1)
    with torch.no_grad(), torch.autocast(flat.device.type, enabled=False):
        owners = []
        for clip in choice.clips:
            value_nD = flat.index_select(0, on_device(clip.place_n, flat.device))
            value_nD = value_nD.to(torch.promote_types(flat.dtype, torch.float32))
            owners.append(RULES[choice.how](value_nD, clip, choice.keep))
        return list(torch.split(torch.cat(owners).cpu(), [len(owner_n) for owner_n in owners]))


def _cosine(left_sD: Tensor, right_dD: Tensor) -> Tensor:
    """[s, d]"""
    return normalize(left_sD, dim=1) @ normalize(right_dD, dim=1).T


def several(member_m: Tensor, block_m: Tensor, first_b: Tensor) -> Blocks:
    """Blocks without those of one cell, which is its own mean."""
    size_b = torch.bincount(block_m, minlength=len(first_b))
    several_b = size_b > 1
    number_b = several_b.long().cumsum(0) - 1
    of_several_m = several_b[block_m]
    return Blocks(member_m[of_several_m], number_b[block_m[of_several_m]], first_b[several_b], size_b[several_b])


__all__ = ["ATTENTION", "RULES", "chosen", "clip_of", "first_places", "most_attended", "several"]
