"""VideoChat2's processor in transformers' own form, for use without the harness.

    processor = VideoChat2Processor(tokenizer, qformer_tokenizer)
    text = "[INST] <Video></Video> [/INST] [INST] What happens? [/INST]"
    inputs = processor(text=text, videos=[frames], instructions="Watch the video and answer.")
    model.generate(**inputs)

Legend: T frames, H and W pixels, S expanded length, L instruction tokens.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchFeature, ProcessorMixin

from harness.models.hf_processor import TextDecoding
from harness.models.videochat2.conversation import TAGS
from harness.models.videochat2.image_processing import Colours, Pixels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

MARK: Final = re.compile("|".join(re.escape(start + end) for start, end in TAGS.values()))
"""Where the visual tokens of a prompt stand: between the two marks, which are tokenized apart."""


class VideoChat2Processor(TextDecoding, ProcessorMixin):  # type: ignore[misc]
    """Text with `<Video></Video>` or `<Image></Image>`, frames and instructions to the model's inputs.

    Args:
        tokenizer: the language model's.
        qformer_tokenizer: as `weights.qformer_tokenizer` gives it.
        visual_tokens: placeholders of one clip, `VideoChat2Config.visual_tokens`.
        placeholder_token_id: must be the model's; the default is that of the released sizes.
        size: pixels along a side of the model's input.
        colours: what pictures are normalised by.
        hd: a clip as tiles and the whole picture.
    """

    def __init__(
        self,
        tokenizer: Any = None,
        qformer_tokenizer: Any = None,
        visual_tokens: int = 96,
        placeholder_token_id: int = 32000,
        size: int = 224,
        colours: Colours = "imagenet",
        hd: bool = False,
        **kwargs: Any,
    ) -> None:
        self.visual_tokens = visual_tokens
        self.placeholder_token_id = placeholder_token_id
        self.size = size
        self.colours = colours
        self.hd = hd
        super().__init__(tokenizer, qformer_tokenizer, **kwargs)

    def __call__(
        self,
        images: Sequence[Tensor] | None = None,
        text: str | Sequence[str] | None = None,
        videos: Sequence[Tensor] | None = None,
        instructions: str | Sequence[str] = "",
        **kwargs: Any,
    ) -> BatchFeature:
        """Right-padded input_ids and attention_mask, with the real `<s>` in front; pixel_values, frame_counts and the
        left-padded instructions of all clips where there are media.

        Args:
            images: uint8 [3, H, W] each, in the order of the `<Image></Image>` marks.
            text: prompts, each with one mark or none.
            videos: uint8 [T, 3, H, W] each, in the order of the `<Video></Video>` marks; any T.
            instructions: what the QFormer reads, one for all prompts or one each.

        Raises:
            ValueError: marks and media, or prompts and instructions, differ in number.
        """
        prompts = [text] if isinstance(text, str) else list(text or ())
        instruction_texts = [instructions] * len(prompts) if isinstance(instructions, str) else list(instructions)
        if len(instruction_texts) != len(prompts):
            raise ValueError(f"{len(instruction_texts)} instructions for {len(prompts)} prompts")
        waiting = {
            "<Image></Image>": [image[None] for image in images or ()],
            "<Video></Video>": list(videos or ()),
        }
        pixels = Pixels(self.size, self.colours, self.hd)
        rows: list[Tensor] = []
        clips: list[Tensor] = []
        words: list[str] = []
        for prompt, instruction in zip(prompts, instruction_texts, strict=True):
            own_clips = self._clips(prompt, waiting, pixels)
            rows.append(torch.tensor(self._ids(prompt, len(own_clips))))
            clips += own_clips
            words += [instruction] * len(own_clips)
        left = {mark: len(media) for mark, media in waiting.items() if media}
        if left:
            raise ValueError(f"more media than marks in the text: {left}")
        tokenizer: Any = self.tokenizer
        pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        data: dict[str, Any] = {
            "input_ids": pad_sequence(rows, batch_first=True, padding_value=pad),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in rows], batch_first=True),
            "bos_as_ones": torch.zeros(len(rows), dtype=torch.bool),
        }
        if clips:
            read: Any = self.qformer_tokenizer
            encoding = read(words, padding="longest", padding_side="left", return_tensors="pt")
            data["pixel_values"] = pixels.normalise(torch.cat(clips))
            data["frame_counts"] = tuple(len(clip) for clip in clips)
            data["qformer_input_ids"] = encoding["input_ids"]
            data["qformer_attention_mask"] = encoding["attention_mask"]
        return BatchFeature(data)

    def _clips(self, prompt: str, waiting: dict[str, list[Tensor]], pixels: Pixels) -> list[Tensor]:
        """The clips [T, 3, size, size] of a prompt's medium, which leaves `waiting`."""
        marks = MARK.findall(prompt)
        if len(marks) > 1:
            raise ValueError(f"{len(marks)} marks in a prompt; VideoChat2 takes one video or image, or none")
        if not marks:
            return []
        if not waiting[marks[0]]:
            raise ValueError(f"more {marks[0]} in the text than media given")
        return list(pixels.clips(waiting[marks[0]].pop(0)))

    def _ids(self, prompt: str, clips: int) -> list[int]:
        """`<s>`, the text up to the mark's middle, the placeholders, the rest."""
        tokenizer: Any = self.tokenizer
        ids = [int(tokenizer.bos_token_id)]
        mark = MARK.search(prompt)
        if mark is None:
            return ids + list(tokenizer(prompt, add_special_tokens=False)["input_ids"])
        middle = mark.start() + mark.group().index("</")
        before, after = prompt[:middle], prompt[middle:]
        ids += tokenizer(before, add_special_tokens=False)["input_ids"]
        ids += [self.placeholder_token_id] * (clips * self.visual_tokens)
        return ids + list(tokenizer(after, add_special_tokens=False)["input_ids"])
