"""VideoLLaMA2's processor in transformers' own form, for use without the harness.

    processor = VideoLLaMA2Processor(image_processor, tokenizer, num_frames=16, visual_tokens=1352)
    inputs = processor(text=processor.apply_chat_template(conversation, add_generation_prompt=True), videos=[frames])
    model.generate(**inputs)

Legend: T frames, H and W pixels, S expanded length.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchFeature, ProcessorMixin

from harness.models.hf_processor import TextDecoding
from harness.models.videollama2.config import OFFICIAL_PLACEHOLDER
from harness.models.videollama2.image_processing import Pixels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

TAGS: Final = re.compile(r"<image>|<video>")


class VideoLLaMA2Processor(TextDecoding, ProcessorMixin):  # type: ignore[misc]
    """Text with `<image>` and `<video>` tags, and frames, to the model's inputs.

    Args:
        image_processor: the tower's own; its sizes, mean and deviation are read, PIL resizes.
        num_frames: T, of every video.
        visual_tokens: placeholders of one video or picture, `VideoLLaMA2Config.visual_tokens`.
        image_aspect_ratio: "pad" as in the official fine-tuning, "square" as in the official inference.
        placeholder_token_id: must be the model's; the default is that of every official checkpoint.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        num_frames: int = 16,
        visual_tokens: int = 1352,
        image_aspect_ratio: str = "square",
        placeholder_token_id: int = OFFICIAL_PLACEHOLDER,
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.num_frames = num_frames
        self.visual_tokens = visual_tokens
        self.image_aspect_ratio = image_aspect_ratio
        self.placeholder_token_id = placeholder_token_id
        super().__init__(image_processor, tokenizer, chat_template=chat_template or tokenizer.chat_template, **kwargs)

    def __call__(
        self,
        images: Sequence[Tensor] | None = None,
        text: str | Sequence[str] | None = None,
        videos: Sequence[Tensor] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Right-padded input_ids and attention_mask; pixel_values and frame_counts where there are media.

        Args:
            images: uint8 [3, H, W] each, in the order of the `<image>` tags.
            text: prompts with a tag for each medium, as the template gives them.
            videos: uint8 [T, 3, H, W] each, in the order of the `<video>` tags.

        Raises:
            ValueError: tags and media differ in number, or a video has another number of frames.
        """
        waiting = {"<image>": [image[None] for image in images or ()], "<video>": list(videos or ())}
        for video in waiting["<video>"]:
            if video.shape[0] != self.num_frames:
                raise ValueError(f"a video of {video.shape[0]} frames, not {self.num_frames}")
        clips: list[Tensor] = []
        prompts = [text] if isinstance(text, str) else list(text or ())
        rows = [torch.tensor(self._row(prompt, waiting, clips)) for prompt in prompts]
        left = {tag: len(media) for tag, media in waiting.items() if media}
        if left:
            raise ValueError(f"more media than tags in the text: {left}")
        tokenizer: Any = self.tokenizer
        data: dict[str, Any] = {
            "input_ids": pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id or 0),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in rows], batch_first=True),
        }
        if clips:
            pixels = self._pixels()
            data["pixel_values"] = pixels.normalise(torch.cat([pixels.squares(clip) for clip in clips]))
            data["frame_counts"] = tuple(len(clip) for clip in clips)
        return BatchFeature(data)

    def _row(self, prompt: str, waiting: dict[str, list[Tensor]], clips: list[Tensor]) -> list[int]:
        """Ids of one prompt; its media go from `waiting` to `clips`."""
        ids: list[int] = []
        begin = 0
        for tag in [*TAGS.finditer(prompt), None]:
            words = prompt[begin : len(prompt) if tag is None else tag.start()]
            ids += self.tokenizer(words, add_special_tokens=False)["input_ids"] if words else []
            if tag is not None:
                if not waiting[tag.group()]:
                    raise ValueError(f"more {tag.group()} in the text than media given")
                clips.append(waiting[tag.group()].pop(0))
                ids += [self.placeholder_token_id] * self.visual_tokens
                begin = tag.end()
        return ids

    def _pixels(self) -> Pixels:
        own: Any = self.image_processor
        size = dict(own.size)
        side = size.get("height") or size["shortest_edge"]
        aspect: Any = self.image_aspect_ratio
        red, green, blue = (float(part) for part in own.image_mean)
        deviation = (float(own.image_std[0]), float(own.image_std[1]), float(own.image_std[2]))
        return Pixels(side, (red, green, blue), deviation, aspect, crop=bool(own.do_center_crop))
