"""A toy for the two examples: pictures of one colour, and the question which colour it is.

The model is InternVL at toy size with random weights; nothing is downloaded. In a script of your own, a transformers
processor and its checkpoint take the place of this file.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import InternVLConfig, InternVLForConditionalGeneration, InternVLVisionConfig, Qwen3Config

PAD, START, PICTURE, QUESTION, ANSWER, END = range(6)
COLOURS = torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0], [1.0, 1.0, 0]])
VISUAL_TOKENS = 4
VOCABULARY = 32


def model() -> Any:
    """InternVL with a vision tower of 2 layers and a Qwen3 decoder of 2 layers."""
    torch.manual_seed(0)
    vision = InternVLVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=(16, 16),
        patch_size=(4, 4),
    )  # fmt: skip
    text = Qwen3Config(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=64, pad_token_id=PAD, bos_token_id=START,
        eos_token_id=END,
    )  # fmt: skip
    config = InternVLConfig(
        vision_config=vision, text_config=text, image_token_id=PICTURE, image_seq_length=VISUAL_TOKENS
    )
    return InternVLForConditionalGeneration(config)


class Pictures(torch.utils.data.Dataset[dict[str, Any]]):
    """Each sample has an id that stays its own in every epoch and on every machine."""

    def __init__(self, number: int = 64) -> None:
        self.number = number

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, place: int) -> dict[str, Any]:
        draw = torch.Generator().manual_seed(place)
        colour = int(torch.randint(0, 4, (), generator=draw))
        noise = torch.rand(3, 16, 16, generator=draw) * 0.2
        # "it is a picture that shows <colour>", with one to four filler words in between
        filler = [20 + word for word in range(int(torch.randint(1, 5, (), generator=draw)))]
        return {
            "sample_id": f"toy/{place}",
            "pixels": COLOURS[colour][:, None, None] + noise,
            "prompt": [START, *[PICTURE] * VISUAL_TOKENS, QUESTION, ANSWER],
            "answer": [*filler, 10 + colour, END],
        }


def collate(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """What a processor's collator gives: padded ids in expanded length, mask, labels, pixels."""
    rows = [example["prompt"] + example["answer"] for example in examples]
    length = max(len(row) for row in rows)
    input_ids = torch.tensor([row + [PAD] * (length - len(row)) for row in rows])
    labels = torch.tensor(
        [
            [-100] * len(example["prompt"]) + example["answer"] + [-100] * (length - len(row))
            for example, row in zip(examples, rows, strict=True)
        ]
    )
    return {
        "input_ids": input_ids,
        "attention_mask": (input_ids != PAD).long(),
        "labels": labels,
        "pixel_values": torch.stack([example["pixels"] for example in examples]),
    }
