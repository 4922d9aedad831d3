"""What `sizes` needs of a model, and InternVL3.5-8B at the size of its publication for counting its work.

Legend: T frames, P patches of a frame, D width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from harness.models.flops import FullSize, Published, VisionPart, decoder_shape
from harness.models.hf.model import parts_of
from harness.models.hf.sizes import PUBLISHED as PUBLISHED_SIZES
from harness.models.hf.sizes import VisionFlops, VisionSizes, vision_flops, window_patches

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from harness.models.hf.model import Parts

_MATRICES: Final = (nn.Linear, nn.Conv2d, nn.Conv3d)
_CLASS_TOKENS: Final = ("cls_token", "class_embedding")
"""Names of a tower's parameter that stands before the patches of every picture."""


def sizes_of(model: Any, parts: Parts, config: Any, merged: int = 1) -> VisionSizes:
    """Of a model, whose weights may be on the meta device.

    Args:
        merged: patches that a tower gives as one, where its projector does not do so itself.
    """
    vision = config.vision_config
    hidden = vision.hidden_size
    layers = getattr(vision, "num_hidden_layers", None) or vision.depth
    entry = tower = 0
    projector: list[tuple[int, float]] = []
    shared: dict[str, float] = {}
    for name, module in model.named_modules():
        if not isinstance(module, _MATRICES):
            continue
        weights = module.weight.numel()
        if f"{name}.weight" in parts.tower:
            if isinstance(module, nn.Linear):
                tower += weights
            else:
                entry += weights
        elif f"{name}.weight" in parts.projector:
            parent = name.rpartition(".")[0]
            # The first matrix of a block reads several patches in a row where these are merged; the others follow it.
            rows = shared.setdefault(parent, max(1.0, module.weight.shape[1] / hidden) * merged)
            projector.append((weights, rows))
    full = getattr(vision, "fullatt_block_indexes", None)
    return VisionSizes(
        entry,
        tower,
        hidden,
        layers,
        tuple(projector),
        class_tokens=sum(name.endswith(_CLASS_TOKENS) for name in parts.tower),
        windowed=0 if full is None else layers - len(full),
        window=0 if full is None else window_patches(vision.to_dict()),
    )


def patches_of(inputs: Mapping[str, Tensor], config: Any) -> tuple[int, int, int]:
    """What the tower reads of a sample.

    Args:
        inputs: the media's tensors as the checkpoint's processor makes them.

    Returns:
        Patches in all, pictures (frames, tiles) that they belong to, and how many patches the tower merges itself.
    """
    name = next(name for name in inputs if name.startswith("pixel_values"))
    pixels = inputs[name]
    if pixels.dim() == 2:
        grid = next(value for key, value in inputs.items() if key.endswith("_grid_thw"))
        merge = next((value for key, value in inputs.items() if key.endswith("_merge_sizes")), None)
        return pixels.shape[0], int(grid[:, 0].sum()), 1 if merge is None else int(merge[0]) ** 2
    size = config.vision_config.patch_size
    height, width = (size, size) if isinstance(size, int) else size
    *leading, _, rows, columns = pixels.shape
    pictures = int(torch.tensor(leading).prod())
    # LLaVA-NeXT-Video pools the patches of a video before its projector.
    pooled = getattr(config, "spatial_pool_stride", 1) ** 2 if name.endswith("videos") else 1
    return pictures * (rows // height) * (columns // width), pictures, pooled


_TOKENS: Final = 256
"""Visual tokens of a tile."""


def full_size(frames: int, layers: int | None = None) -> FullSize:
    """InternVL3.5-8B on the meta device, a tile for each frame, all of it trained.

    Args:
        layers: of the decoder; None for all.
    """
    from transformers import InternVLConfig, InternVLForConditionalGeneration

    sizes = PUBLISHED_SIZES["InternVL3_5-8B"].fields
    text = {**sizes["text_config"]}
    text["num_hidden_layers"] = layers or text["num_hidden_layers"]
    config = InternVLConfig(**{**sizes, "text_config": text})
    config._attn_implementation = "eager"  # its two products are counted on every device
    with torch.device("meta"):
        model: Any = InternVLForConditionalGeneration(config)
        pixels = torch.zeros(frames, 3, 448, 448)
        features = torch.zeros(frames, _TOKENS, 4 * config.vision_config.hidden_size, requires_grad=True)
    inner = model.model
    patches = frames * (448 // 14) ** 2
    work: VisionFlops = vision_flops(sizes_of(model, parts_of(model), config), patches, frames)

    def tower() -> Tensor:
        hidden: Tensor = inner.vision_tower(pixels).last_hidden_state
        return hidden

    return FullSize(
        vision=(
            VisionPart("vision", tower, work.tower + work.tower_backward, again=work.layers),
            VisionPart("projector", lambda: inner.multi_modal_projector(features), 3 * work.projector),
        ),
        decoder=inner.language_model,
        head=model.lm_head,
        shape=decoder_shape(config.text_config),
        visual_tokens=frames * _TOKENS,
        checkpointed=True,
        note=" (InternVL3.5-8B)",
    )


PUBLISHED: Final = Published(full_size, frames=(8, 32), prompt=40, targets=280)
"""Targets: as for VideoLLaMA2, whose conversations it is trained on here."""
