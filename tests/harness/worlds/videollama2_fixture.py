"""The parity fixture: what the official code took in and gave out. Every size and name is read from the files.

Legend: B rows, S expanded length, F frames of all clips, H and W pixels.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch.nn.utils.rnn import pad_sequence

from harness.models.videollama2.model import VideoLLaMA2ForConditionalGeneration

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor


@dataclass(frozen=True)
class Parity:
    """The fixture's files, read once."""

    root: Path

    @cached_property
    def expected(self) -> dict[str, Tensor]:
        return load_file(self.root / "expected.safetensors")

    @cached_property
    def inputs(self) -> dict[str, Tensor]:
        return load_file(self.root / "inputs.safetensors")

    @cached_property
    def config(self) -> dict[str, Any]:
        return self.json("config.json")

    @cached_property
    def modal(self) -> list[str]:
        """Kind of media of each row, as the official loader names it (a text-only row has a black image)."""
        with safe_open(self.root / "inputs.safetensors", "pt") as file:
            return json.loads(file.metadata()["modal"])

    def json(self, name: str) -> Any:
        return json.loads((self.root / name).read_text())

    def model(self, attention: str = "eager") -> VideoLLaMA2ForConditionalGeneration:
        return VideoLLaMA2ForConditionalGeneration.from_pretrained(self.root, attn_implementation=attention)

    def pixels(self, row: int) -> Tensor:
        """Frames of a row, [F, 3, H, W]: one for an image, whatever the official code repeats."""
        found = self.inputs[f"images.{row}.{self.modal[row]}"]
        frames = found if found.dim() == 4 else found[None]
        return frames if self.modal[row] == "video" else frames[:1]

    def text(self, row: int) -> tuple[list[int], list[int]]:
        """Ids and labels of a row without padding; a negative id stands for its media."""
        length = int(self.inputs["attention_mask"][row].sum())
        return self.inputs["input_ids"][row, :length].tolist(), self.inputs["labels"][row, :length].tolist()

    def batch(self, model: VideoLLaMA2ForConditionalGeneration, rows: list[int] | None = None) -> dict[str, Any]:
        """The model's inputs for some rows (all by default), labels included."""
        tokens, placeholder = model.config.visual_tokens, model.config.placeholder_token_id
        rows = list(range(len(self.modal))) if rows is None else rows
        ids, labels, clips = [], [], []
        for row in rows:
            wide_ids: list[int] = []
            wide_labels: list[int] = []
            for token, label in zip(*self.text(row), strict=True):
                count = tokens if token < 0 else 1
                wide_ids += [placeholder if token < 0 else token] * count
                wide_labels += [label] * count
            ids.append(torch.tensor(wide_ids))
            labels.append(torch.tensor(wide_labels))
            if placeholder in wide_ids:
                clips.append(self.pixels(row))
        inputs = {
            "input_ids": pad_sequence(ids, batch_first=True),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
            "labels": pad_sequence(labels, batch_first=True, padding_value=-100),
        }
        if clips:
            inputs |= {"pixel_values": torch.cat(clips), "frame_counts": [len(clip) for clip in clips]}
        return inputs
