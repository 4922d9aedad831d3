"""The three training loops of the tiny model's stages: tower, backbone, aligned.

They run on the CPU, draw from a generator of their own and leave torch's global random state as it was.

Legend: N clips or drawn frames, T frames, C channels, H and W pixels, G cells along a side, B rows,
S expanded length, M scored targets or occupied cells, D hidden size, V vocabulary, P visual tokens.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from harness.data.sample import Media
from harness.data.shapes.scene import COLOURS, SHAPES
from harness.models.tiny.processor import normalise
from regate.types import IGNORE, Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from harness.config.model import StageRecipe
    from harness.data.sample import Encoded
    from harness.data.shapes import Clip
    from harness.data.shapes.scene import Scene
    from harness.models.tiny.model import TinyTower, TinyVLMForConditionalGeneration

    Advance = Callable[..., None]

CELL_CLASSES: Final = 1 + len(COLOURS) + len(SHAPES)
"""Of a cell: something is here, its colour, its shape."""
FRAMES_A_CLIP: Final = 4
"""Frames that the tower sees of each drawn clip."""
POOL: Final = 8
"""Text rows are sorted by length within this many batches, so that little is padding."""
WARMUP: Final = 0.05
ENCODE_ROWS: Final = 64


@contextmanager
def own_randomness(seed: int) -> Iterator[torch.Generator]:
    """Weights that are initialised inside depend on `seed` only; torch's global state is put back after it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield torch.Generator().manual_seed(seed + 1)


def fit(
    modules: Sequence[nn.Module], recipe: StageRecipe, loss_at: Callable[[int], Tensor], advance: Advance
) -> float:
    """AdamW with a short warm-up and a cosine to zero; returns the mean loss of the last tenth of the steps."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.lr, weight_decay=0.0, fused=True)
    warmup = max(1, round(WARMUP * recipe.steps))
    tail: list[float] = []
    for step in range(recipe.steps):
        after = (step - warmup) / max(1, recipe.steps - warmup)
        factor = min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * max(0.0, after))))
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * factor
        loss = loss_at(step)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        value = float(loss.detach())
        if step >= int(recipe.steps * 0.9):
            tail.append(value)
        advance(step + 1, f"loss {value:.3f}")
    return sum(tail) / len(tail)


def draws(count: int, batch: int, steps: int, generator: torch.Generator) -> Tensor:
    """Indices [steps, batch]: one shuffle of all after another, so that every item is seen equally often."""
    rounds = -(-steps * batch // count)
    order = torch.cat([torch.randperm(count, generator=generator) for _ in range(rounds)])
    return order[: steps * batch].view(steps, batch)


def read_clips(clips: Sequence[Clip], frames: int, advance: Advance) -> Tensor:
    """The pictures of the clips: uint8 [N, T, 3, H, W]. Errors as `harness.data.loading.video.read_frames`."""
    from harness.data.loading.video import read_frames

    size = clips[0].scene.size
    pixels_NTCHW = torch.empty((len(clips), frames, 3, size, size), dtype=torch.uint8)
    for i, clip in enumerate(clips):
        pixels_NTCHW[i] = read_frames(media_of(clip), frames=frames)
        advance(i + 1)
    return pixels_NTCHW


def media_of(clip: Clip) -> Media:
    """The clip as a sample refers to it."""
    return Media("video", clip.path, sha256=clip.sha256)


# --- (a) the vision tower --------------------------------------------------------------------------------


def cell_labels(scenes: Sequence[Scene], grid: int) -> Tensor:
    """What is in every cell of every frame: uint8 [N, T, CELL_CLASSES, G, G], by the objects' centres."""
    labels = torch.zeros((len(scenes), scenes[0].frames, CELL_CLASSES, grid, grid), dtype=torch.uint8)
    places: list[tuple[int, ...]] = []
    for n, scene in enumerate(scenes):
        for thing in scene.things:
            shape = 1 + len(COLOURS) + SHAPES.index(thing.shape)
            for t in range(scene.frames):
                if thing.visible[t]:
                    row = min(int(thing.y[t] * grid / scene.size), grid - 1)
                    column = min(int(thing.x[t] * grid / scene.size), grid - 1)
                    colour = 1 + COLOURS.index(thing.colour[t])
                    places += [(n, t, index, row, column) for index in (0, colour, shape)]
    labels[tuple(torch.tensor(places).T)] = 1
    return labels


def train_tower(
    tower: TinyTower,
    pixels_NTCHW: Tensor,
    scenes: Sequence[Scene],
    recipe: StageRecipe,
    generator: torch.Generator,
    advance: Advance,
) -> dict[str, float]:
    """Stage (a): per-cell occupancy, colour and shape through a linear head that is thrown away.

    Returns `loss` and `accuracy`, the part of the occupied cells of the last batches whose colour and shape are
    both read right.
    """
    head = nn.Conv2d(tower.config.channels[-1], CELL_CLASSES, kernel_size=1)
    order = draws(pixels_NTCHW[:, :, 0, 0, 0].numel(), recipe.batch * FRAMES_A_CLIP, recipe.steps, generator)
    pixels_NCHW, labels_NCGG = pixels_NTCHW.flatten(0, 1), cell_labels(scenes, tower.config.grid).flatten(0, 1)
    hits: list[float] = []

    def loss_at(step: int) -> Tensor:
        picked = order[step]
        logits_NCGG = head(tower(normalise(pixels_NCHW[picked])).last_hidden_state)
        loss, read = cell_loss(logits_NCGG, labels_NCGG[picked].float())
        if step >= int(recipe.steps * 0.9):
            hits.append(read)
        return loss

    loss = fit([tower, head], recipe, loss_at, advance)
    return {"loss": loss, "accuracy": sum(hits) / len(hits)}


def cell_loss(logits_NCGG: Tensor, labels_NCGG: Tensor) -> tuple[Tensor, float]:
    """Binary cross entropy of occupancy, plus cross entropies of colour and shape where something is.

    A cell that holds two centres has two right answers, half each. Returns the sum of the three, and the part
    of the occupied cells whose colour and shape are both read right.
    """
    here_NGG = labels_NCGG[:, 0] > 0
    logits_MC = logits_NCGG.movedim(1, -1)[here_NGG]
    labels_MC = labels_NCGG.movedim(1, -1)[here_NGG]
    loss = F.binary_cross_entropy_with_logits(logits_NCGG[:, 0], labels_NCGG[:, 0])
    right_M = torch.ones(len(labels_MC), dtype=torch.bool)
    for group in (slice(1, 1 + len(COLOURS)), slice(1 + len(COLOURS), CELL_CLASSES)):
        share_MC = labels_MC[:, group] / labels_MC[:, group].sum(1, keepdim=True)
        loss = loss + F.cross_entropy(logits_MC[:, group], share_MC)
        right_M &= share_MC.gather(1, logits_MC[:, group].argmax(1, keepdim=True)).squeeze(1) > 0
    return loss, float(right_M.float().mean())


@torch.no_grad()
def cell_features(tower: TinyTower, pixels_NTCHW: Tensor) -> Tensor:
    """What the frozen tower says of the clips, once for all: float32 [N, T, C, G, G]."""
    features = [
        tower(normalise(part.flatten(0, 1))).last_hidden_state.unflatten(0, part.shape[:2])
        for part in torch.split(pixels_NTCHW, ENCODE_ROWS)
    ]
    return torch.cat(features)


# --- (b) the text backbone -------------------------------------------------------------------------------


def train_backbone(
    decoder: nn.Module,
    rows: Sequence[Encoded],
    recipe: StageRecipe,
    generator: torch.Generator,
    advance: Advance,
) -> dict[str, float]:
    """Stage (b): a causal LM on the answers, given the questions, without the visual positions.

    The other positions keep their numbers, as the teacher of Eq. 1 sees them.
    """
    texts = [_without_visual(row) for row in rows]
    batches = _by_length(texts, recipe, generator)

    def loss_at(step: int) -> Tensor:
        ids_BS, labels_BS, position_BS, mask_BS = _padded([texts[i] for i in batches[step].tolist()])
        hidden_BSD = decoder.model(  # type: ignore[operator]
            input_ids=ids_BS, attention_mask=mask_BS, position_ids=position_BS, use_cache=False
        ).last_hidden_state
        return answer_loss(hidden_BSD, decoder.lm_head, labels_BS)  # type: ignore[arg-type]

    return {"loss": fit([decoder], recipe, loss_at, advance)}


def answer_loss(hidden_BSD: Tensor, head: nn.Module, labels_BS: Tensor) -> Tensor:
    """Mean cross entropy of the targets, the head applied to their predictor positions only."""
    target_BS = labels_BS[:, 1:] != IGNORE
    logits_MV = head(hidden_BSD[:, :-1][target_BS])
    return F.cross_entropy(logits_MV, labels_BS[:, 1:][target_BS])


def _without_visual(row: Encoded) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, labels and original positions of the positions that are text."""
    position_S = (row.kind_S != Kind.VISUAL).nonzero().squeeze(1)
    return row.input_ids_S[position_S], row.labels_S[position_S], position_S


def _padded(rows: Sequence[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """input_ids, labels, position_ids and attention mask of a batch, padded on the right."""
    ids_BS = pad_sequence([row[0] for row in rows], batch_first=True, padding_value=-1)
    mask_BS = ids_BS >= 0
    labels_BS = pad_sequence([row[1] for row in rows], batch_first=True, padding_value=IGNORE)
    position_BS = pad_sequence([row[2] for row in rows], batch_first=True)
    return ids_BS.clamp(min=0), labels_BS, position_BS, mask_BS.long()


def _by_length(texts: Sequence[tuple[Tensor, ...]], recipe: StageRecipe, generator: torch.Generator) -> list[Tensor]:
    """Batches of indices, rows of like length together, batches in random order."""
    length = torch.tensor([len(text[0]) for text in texts])
    pools = -(-recipe.steps // POOL)
    batches: list[Tensor] = []
    for pool in draws(len(texts), recipe.batch * POOL, pools, generator):
        parts = pool[length[pool].argsort(stable=True)].split(recipe.batch)
        batches += [parts[i] for i in torch.randperm(len(parts), generator=generator).tolist()]
    return batches[: recipe.steps]


# --- (c) the projector -----------------------------------------------------------------------------------


def train_alignment(
    model: TinyVLMForConditionalGeneration,
    features_NTCGG: Tensor,
    rows: Sequence[Encoded],
    recipe: StageRecipe,
    generator: torch.Generator,
    advance: Advance,
) -> dict[str, float]:
    """Stage (c): tag lists of clips, from cached tower features; trains what of the model has requires_grad."""
    order = draws(len(rows), recipe.batch, recipe.steps, generator)
    texts = [(row.input_ids_S, row.labels_S, torch.arange(len(row.labels_S))) for row in rows]
    embedding = model.get_input_embeddings()
    placeholder = model.config.placeholder_token_id

    def loss_at(step: int) -> Tensor:
        picked = order[step]
        ids_BS, labels_BS, _, mask_BS = _padded([texts[i] for i in picked.tolist()])
        tokens_NPD = model.model.projector(features_NTCGG[picked])
        embeds_BSD = embedding(ids_BS).masked_scatter((ids_BS == placeholder)[..., None], tokens_NPD)
        hidden_BSD = model.model(inputs_embeds=embeds_BSD, attention_mask=mask_BS, use_cache=False)[0]
        return answer_loss(hidden_BSD, model.lm_head, labels_BS)

    return {"loss": fit([model], recipe, loss_at, advance)}
