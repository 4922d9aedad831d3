"""Seven transformers-native multimodal families at toy size, with real pictures or frames in.

Legend: B rows, S expanded length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import Tensor

import regate
from tests.regate import tiny

if TYPE_CHECKING:
    from collections.abc import Callable

VOCAB, IMAGE, VIDEO, START, END = 64, 60, 61, 62, 63
TEXT = {**tiny.SIZES, "vocab_size": VOCAB}
ROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
LENGTH = 34
LONG = torch.int64


@dataclass
class Case:
    """A model in float64, its inputs, and the layout of the batch."""

    model: Any
    inputs: dict[str, Tensor]
    layout: regate.Layout
    position_dims: int
    """Dimensions of the position ids that reach the decoder; 0 where it makes its own."""


def rows(visual: int, token: int) -> tuple[dict[str, Tensor], regate.Layout]:
    """Two rows, the second shorter: text, start, `visual` placeholders, end, question, answer."""
    draw = torch.Generator().manual_seed(visual)
    ids_BS = torch.randint(3, 50, (2, LENGTH), generator=draw)
    ids_BS[:, 2] = START
    ids_BS[:, 3 : 3 + visual] = token
    ids_BS[:, 3 + visual] = END
    mask_BS = torch.ones(2, LENGTH, dtype=LONG)
    mask_BS[1, LENGTH - 5 :] = 0
    ids_BS[mask_BS == 0] = 0
    labels_BS = torch.where((torch.arange(LENGTH) >= visual + 8) & (mask_BS == 1), ids_BS, -100)
    visual_BS = ids_BS == token
    layout = regate.layout_from_labels(labels_BS, mask_BS, visual_BS=visual_BS, input_ids_BS=ids_BS)
    return {"input_ids": ids_BS, "attention_mask": mask_BS}, layout


def pixels(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def grid(*thw: int) -> Tensor:
    return torch.tensor([thw, thw])


def build(name: str, config: Any) -> Any:
    torch.manual_seed(5)
    model = getattr(transformers, f"{name}ForConditionalGeneration")._from_config(config, attn_implementation="sdpa")
    return tiny.in_double(model).train()


def siglip() -> Any:
    return transformers.SiglipVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=4
    )


def internvl() -> Case:
    vision = transformers.InternVLVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=(16, 16),
        patch_size=(4, 4),
    )  # fmt: skip
    config = transformers.InternVLConfig(
        vision_config=vision, text_config=transformers.Qwen3Config(**TEXT), image_token_id=IMAGE, image_seq_length=4
    )
    inputs, layout = rows(8, IMAGE)
    return Case(build("InternVL", config), {**inputs, "pixel_values": pixels(4, 3, 16, 16)}, layout, 0)


def llava_onevision() -> Case:
    config = transformers.LlavaOnevisionConfig(
        vision_config=siglip(), text_config=transformers.Qwen2Config(**TEXT), image_token_index=IMAGE,
        video_token_index=VIDEO,
    )  # fmt: skip
    inputs, layout = rows(9, VIDEO)  # two frames of 2 x 2, and the line break
    return Case(
        build("LlavaOnevision", config), {**inputs, "pixel_values_videos": pixels(2, 2, 3, 16, 16)}, layout, 0
    )


def llava_next_video() -> Case:
    vision = transformers.CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=4
    )
    config = transformers.LlavaNextVideoConfig(
        vision_config=vision, text_config=transformers.LlamaConfig(**TEXT), image_token_index=IMAGE,
        video_token_index=VIDEO, image_seq_length=4, video_seq_length=8,
    )  # fmt: skip
    inputs, layout = rows(8, VIDEO)
    return Case(
        build("LlavaNextVideo", config), {**inputs, "pixel_values_videos": pixels(2, 2, 3, 16, 16)}, layout, 0
    )


def smolvlm() -> Case:
    vision = transformers.SmolVLMVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=4
    )
    config = transformers.SmolVLMConfig(
        vision_config=vision, text_config=transformers.LlamaConfig(**TEXT), image_token_id=IMAGE, scale_factor=2
    )
    inputs, layout = rows(8, IMAGE)
    return Case(build("SmolVLM", config), {**inputs, "pixel_values": pixels(2, 2, 3, 16, 16)}, layout, 0)


def video_llama_3() -> Case:
    vision = transformers.VideoLlama3VisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, patch_size=4
    )
    config = transformers.VideoLlama3Config(
        vision_config=vision, text_config=transformers.Qwen2Config(**TEXT), image_token_id=IMAGE, video_token_id=VIDEO
    )
    inputs, layout = rows(8, VIDEO)
    video = {
        "pixel_values_videos": pixels(64, 48),
        "video_grid_thw": grid(2, 4, 4),
        "video_merge_sizes": torch.tensor([2, 2]),
    }
    return Case(build("VideoLlama3", config), {**inputs, **video}, layout, 0)


def qwen2_5_vl() -> Case:
    vision = transformers.models.qwen2_5_vl.configuration_qwen2_5_vl.Qwen2_5_VLVisionConfig(
        depth=2, hidden_size=16, intermediate_size=16, num_heads=2, patch_size=4, window_size=16, out_hidden_size=32,
        fullatt_block_indexes=[1],
    )  # fmt: skip
    config = transformers.Qwen2_5_VLConfig(
        vision_config=vision.to_dict(),
        text_config={**TEXT, "rope_parameters": ROPE, "model_type": "qwen2_5_vl_text"},
        image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=START, vision_end_token_id=END,
    )  # fmt: skip
    inputs, layout = rows(8, VIDEO)
    video = {
        "pixel_values_videos": pixels(64, 96),
        "video_grid_thw": grid(2, 4, 4),
        "mm_token_type_ids": 2 * (inputs["input_ids"] == VIDEO).int(),
    }
    return Case(build("Qwen2_5_VL", config), {**inputs, **video}, layout, 3)


def qwen3_vl() -> Case:
    config = transformers.Qwen3VLConfig(
        vision_config={
            "depth": 2, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "patch_size": 4,
            "out_hidden_size": 32, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1],
        },
        text_config={**TEXT, "rope_parameters": {**ROPE, "mrope_interleaved": True}},
        image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=START, vision_end_token_id=END,
    )  # fmt: skip
    inputs, layout = rows(8, IMAGE)
    image = {
        "pixel_values": pixels(64, 96),
        "image_grid_thw": grid(1, 4, 8),
        "mm_token_type_ids": (inputs["input_ids"] == IMAGE).int(),
    }
    return Case(build("Qwen3VL", config), {**inputs, **image}, layout, 3)


FAMILIES: dict[str, Callable[[], Case]] = {
    "InternVL": internvl,
    "LLaVA-OneVision": llava_onevision,
    "Qwen2.5-VL": qwen2_5_vl,
    "Qwen3-VL": qwen3_vl,
    "SmolVLM": smolvlm,
    "VideoLLaMA3": video_llama_3,
    "LLaVA-NeXT-Video": llava_next_video,
}
