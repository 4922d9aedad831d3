"""The parity fixture of VideoChat2: what the official code took in and gave out. Every size is read from the files.

Legend: B rows, S expanded length, T frames, F frames of all clips, H and W pixels.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file
from torch.nn.functional import cross_entropy, interpolate
from transformers import AutoTokenizer

from harness.data.sample import Media, Sample, Turn
from harness.models.videochat2.image_processing import COLOURS, Pixels
from harness.models.videochat2.processor import VideoChat2Conversations
from harness.models.videochat2.weights import Lora, ModelFiles, build, config_of, qformer_tokenizer

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor

    from harness.data.sample import Batch


@dataclass(frozen=True)
class Parity:
    """The fixture's files, read once."""

    root: Path

    @cached_property
    def told(self) -> dict[str, Any]:
        return json.loads((self.root / "fixture.json").read_text())

    @cached_property
    def cases(self) -> dict[str, dict[str, Any]]:
        return self.told["cases"]

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        return load_file(self.root / "cases.safetensors")

    @cached_property
    def rules(self) -> dict[str, Any]:
        return json.loads((self.root / "data_rules.json").read_text())

    @cached_property
    def official(self) -> dict[str, Any]:
        """The official model configuration."""
        return self.told["model_config"]

    @property
    def files(self) -> ModelFiles:
        own = self.official
        lora = Lora(own["lora_r"], own["lora_alpha"], own["lora_dropout"])
        return ModelFiles(
            self.root / own["mistral_model_path"],
            self.root / "bert-base-uncased",
            stage3=self.root / "official_stage3.safetensors",
            lora=lora,
            vision_heads=own["vision_encoder"]["encoder_num_heads"],
            image_size=own["vision_encoder"]["img_size"],
        )

    def processor(self, case: str, frames: int) -> VideoChat2Conversations:
        """As the case's official run had it."""
        files = self.files
        config = config_of(files)
        length = self.cases[case].get("max_txt_len", self.official["max_txt_len"])
        vision: Any = config.vision_config
        assert COLOURS["imagenet"] == (tuple(self.told["mean"]), tuple(self.told["std"]))
        return VideoChat2Conversations(
            AutoTokenizer.from_pretrained(files.language_model),
            qformer_tokenizer(files.qformer_tokenizer),
            Pixels(vision.image_size, hd=case.startswith("hd")),
            frames,
            config.visual_tokens,
            config.placeholder_token_id,
            qformer_length=length,
            max_length=length if f"{case}.labels" in self.tensors else self.official["max_txt_len"],
        )

    def clips(self, case: str) -> list[Tensor]:
        """uint8 [T, 3, H, W] of each row; none for rows of text alone."""
        own, named = self.cases[case], [key for key in self.tensors if re.match(rf"frames\.{case}(_\d+)?$", key)]
        twins = [other for other, told in self.cases.items() if told.get("prompts") == own.get("prompts", 0)]
        where = own.get("frames") or (case if named else twins[0])
        name = re.match(r"(\w+?)(\[\d+\])?$", where)
        assert name is not None
        found = [key for key in self.tensors if re.fullmatch(rf"frames\.{name[1]}(_\d+)?", key)]
        frames = [self.frames(key.removeprefix("frames.")) for key in sorted(found)]
        rows = [row for part in frames for row in (part if part.dim() == 5 else part[None])]
        return rows if name[2] is None else [rows[int(name[2][1:-1])]]

    def samples(self, case: str) -> list[Sample]:
        """The official prompts, taken apart into turns."""
        own = self.cases[case]
        prompts = own.get("prompts") or ["[INST] <Video></Video> [/INST] x </s>"] * len(own["instructions"])
        return [self._sample(i, *pair) for i, pair in enumerate(zip(prompts, own["instructions"], strict=True))]

    def _sample(self, number: int, prompt: str, instruction: str) -> Sample:
        text = prompt.removeprefix(instruction).lstrip()
        media = re.match(r"\[INST\] <(Video|Image)></\1> \[/INST\] ", text)
        turns = [Turn("system", instruction)] if instruction else []
        tag = ""
        if media is not None:
            text, tag = text[media.end() :], "<media:0>\n"
        for question, answer in re.findall(r"(?:\[INST\] (.*?) \[/INST\] )?(.*?) </s> ?", text, flags=re.DOTALL):
            turns += [Turn("user", tag + question), Turn("assistant", answer)]
            tag = ""
        kind: Any = "none" if media is None else media[1].lower()
        files = () if media is None else (Media(kind, Path(f"{number}")),)
        return Sample(number + 1, f"row {number}", files, tuple(turns))

    def batch(self, case: str) -> Batch:
        """The case's rows through our own processor."""
        samples = self.samples(case)
        clips = self.clips(case) if samples[0].media else []
        processor = self.processor(case, clips[0].shape[0] if clips else 8)
        rows = [processor.encode(sample, clips[i : i + 1] or None) for i, sample in enumerate(samples)]
        return processor.collate(rows)

    def model(self, attention: str = "sdpa") -> PeftModel:
        model = build(self.files).eval()
        model.get_base_model().set_attn_implementation(attention)
        return model

    def frames(self, name: str) -> Tensor:
        """uint8 [B, T, 3, H, W] or [T, 3, H, W], as the model's side is: the fixture keeps every eighth pixel."""
        small = self.tensors[f"frames.{name}"]
        flat = small.flatten(0, -4)
        scale = self.official["vision_encoder"]["img_size"] // min(small.shape[-2:])
        return interpolate(flat, scale_factor=scale, mode="nearest").unflatten(0, small.shape[:-3])

    def labels(self, case: str) -> Tensor:
        return self.tensors[f"{case}.labels"].long()

    def mask(self, case: str) -> Tensor:
        return self.tensors[f"{case}.attention_mask"].long()

    @property
    def with_logits(self) -> list[str]:
        """Cases with rows of a training batch."""
        return [name for name in self.cases if f"{name}.labels" in self.tensors]

    def close(self, case: str, logits_BSV: Tensor) -> float:
        """Largest difference of the logits from the official ones, where there is text."""
        whole, mask = self.tensors.get(f"{case}.logits"), self.mask(case).bool()
        step = 1 if whole is not None else 4
        theirs = whole if whole is not None else self.tensors[f"{case}.logits_every4"]
        difference: Tensor = (logits_BSV[:, ::step] - theirs)[mask[:, ::step]]
        return float(difference.abs().max())


def loss_of(logits_BSV: Tensor, labels_BS: Tensor) -> Tensor:
    """Per-token loss [B, S - 1], 0 where not supervised."""
    flat_NV, labels_N = logits_BSV[:, :-1].flatten(0, 1), labels_BS[:, 1:].flatten()
    return cross_entropy(flat_NV, labels_N, reduction="none").view(labels_BS.shape[0], -1)
