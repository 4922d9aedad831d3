"""The parity fixture of InternVL: what the official code took in and gave out. Every size is read from the files.

Legend: B rows, S expanded length, T frames, N tiles, H and W pixels, V vocabulary.
"""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file

from harness.data.loading.pictures import read_picture
from harness.data.loading.video import folder_pictures
from harness.data.sample import Media, Sample, Turn
from harness.models.hf.config import visual_ids
from harness.models.hf.internvl.chat import InternVLChat
from harness.models.hf.internvl.checkpoint_names import official_name
from harness.models.hf.internvl.image_processing import tiles_of
from harness.models.hf.internvl.weights import load_model, load_processor, read_config
from harness.models.hf.processor import HFConversations

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from harness.data.sample import Batch, Encoded

ROLES = {"human": "user", "gpt": "assistant", "system": "system"}


@dataclass(frozen=True)
class Parity:
    """The fixture's files, read once."""

    root: Path

    @cached_property
    def stated(self) -> dict[str, Any]:
        return self._json("fixture.json")

    @cached_property
    def rules(self) -> dict[str, Any]:
        return self._json("data_rules.json")

    @cached_property
    def decay(self) -> dict[str, list[str]]:
        return self._json("decay.json")

    @cached_property
    def grad_norms(self) -> dict[str, float]:
        return self._json("grad_norms.json")

    @cached_property
    def cases(self) -> dict[str, dict[str, Any]]:
        return {case["id"]: case for case in self.stated["cases"]}

    @cached_property
    def inputs(self) -> dict[str, Tensor]:
        return load_file(self.root / "inputs.safetensors")

    @cached_property
    def expected(self) -> dict[str, Tensor]:
        return load_file(self.root / "expected.safetensors")

    @cached_property
    def samples(self) -> dict[str, Sample]:
        lines = (self.root / "data.jsonl").read_text().splitlines()
        return {item["id"]: self._sample(item) for item in map(json.loads, lines)}

    @property
    def rows(self) -> list[str]:
        """The items of the official batch."""
        rows: list[str] = self.stated["batch_rows"]
        return rows

    @cached_property
    def packs(self) -> list[list[str]]:
        """The items of each of the official packs, in their order."""
        return [self._pack(place) for place in range(len(self.stated["packs"]))]

    @cached_property
    def pack_batches(self) -> list[Batch]:
        return [self.batch(items) for items in self.packs]

    @cached_property
    def config(self) -> Any:
        return read_config(self.root)

    @cached_property
    def own_processor(self) -> Any:
        """transformers'."""
        return load_processor(self.root)

    def model(self, attention: str) -> Any:
        model = load_model(self.root, torch.float32).eval()
        model.set_attn_implementation(attention)
        return model

    def processor(self, item: str = "", *, through: bool = False) -> HFConversations:
        """As an item's official run had it: the number of frames is that which was drawn there."""
        processor, config = self.own_processor, self.config
        frames = self.cases.get(item, {}).get("frames") or [0]
        return HFConversations(
            processor,
            InternVLChat(processor.tokenizer, processor.image_token, processor.video_token),
            len(frames),
            visual_ids(config, processor, str(self.root)),
            1 << 20,
            tiles=tiles_of(processor, config.image_seq_length, str(self.root), through=through),
        )

    def frames(self, item: str) -> list[Tensor]:
        """uint8 [T, 3, H, W] of each medium: of a video, the frames that were drawn."""
        clips: list[Tensor] = []
        for media in self.samples[item].media:
            if media.kind == "image":
                pictures = [read_picture(media.path)]
            else:
                files = folder_pictures(media.path)
                pictures = [read_picture(files[index]) for index in self.cases[item]["frames"]]
            clips.append(torch.cat([torch.from_numpy(picture) for picture in pictures]).permute(0, 3, 1, 2))
        return clips

    def encoded(self, item: str) -> Encoded:
        return self.processor(item).encode(self.samples[item], self.frames(item))

    def batch(self, items: list[str]) -> Batch:
        return self.processor().collate([self.encoded(item) for item in items])

    def prompt(self, item: str) -> Batch:
        """The item's media and the question that the official chat function was asked, as our prompt."""
        processor = self.processor(item)
        text = processor.tokenizer.decode(self.inputs[f"infer.{item}.input_ids"][0])
        asked = re.sub(r"(Frame\d+: )?<img>(<IMG_CONTEXT>)*</img>\n", "", text).split("<|im_end|>")[1]
        question = asked.removeprefix("\n<|im_start|>user\n")
        tag = "<media:0>\n" if self.samples[item].media else ""
        sample = replace(self.samples[item], turns=(Turn("user", tag + question),))
        return processor.collate([processor.encode_prompt(sample, self.frames(item))])

    def official(self, model: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """One tensor for each parameter of the model, under the published names."""
        thirds: dict[str, list[Tensor]] = {}
        for name, _ in model.named_parameters():
            thirds.setdefault(official_name(name)[0], []).append(tensors[name])
        return {name: torch.cat(parts) for name, parts in thirds.items()}

    def _json(self, name: str) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.root / name).read_text())
        return content

    def _sample(self, item: dict[str, Any]) -> Sample:
        """The item as the program's readers give it: numbered tags where the text has the official ones."""
        named = item.get("image") or item.get("video") or []
        kind: Any = "video" if "video" in item else "image"
        media = tuple(
            Media(kind, self.root / "media" / name) for name in (named if isinstance(named, list) else [named])
        )
        numbers = iter(range(len(media)))
        turns = tuple(
            Turn(ROLES[turn["from"]], re.sub("<image>|<video>", lambda _: f"<media:{next(numbers)}>", turn["value"]))  # type: ignore[arg-type]
            for turn in item["conversations"]
        )
        number = int.from_bytes(item["id"].encode()[:7], "big")
        return Sample(number, item["id"], media, turns)

    def _pack(self, place: int) -> list[str]:
        """By the ids that stand between the pack's bounds."""
        ids = self.inputs[f"pack{place}.input_ids"][0]
        edges = self.inputs[f"pack{place}.cu_seqlens"][0].tolist()
        parts = [ids[first:last] for first, last in itertools.pairwise(edges)]
        named = {item: self.inputs[f"{item}.input_ids"] for item in self.samples}
        return [
            next(item for item, own in named.items() if own.shape == part.shape and torch.equal(own, part))
            for part in parts
        ]
