"""InternVL's conversations as its own training code writes and labels them (template `internvl2_5`).

A turn is `<|im_start|>role\\n ... <|im_end|>\\n`, and a system turn of its own stands first. Turns are tokenized one
by one. Of an answer's turn the model learns all but as many tokens as its header has, and but the last one, the line
break: so it learns the answer and the marker that ends it. An answer that begins with a line break, which the
tokenizer joins to that of the header, loses that token, there and here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from harness.common.errors import DataError
from harness.models.hf.chat import MEDIA, Rendered, check_speakers, refuse_markers, tagged

if TYPE_CHECKING:
    from collections.abc import Mapping

    from harness.data.sample import Sample

SYSTEM: Final = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"  # noqa: RUF001
)
"""The system turn of a conversation without one of its own."""
START: Final = "<|im_start|>"
END: Final = "<|im_end|>"
TEMPLATE: Final = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nSYSTEM<|im_end|>\\n' }}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<IMG_CONTEXT>\\n' }}{% elif part['type'] == 'video' %}{{ '<video>\\n' }}"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
).replace("SYSTEM", SYSTEM)
"""The same conversations for transformers' processor, which puts a line break behind a medium."""


class InternVLChat:
    """Implements `models.hf.chat.Conversations`.

    Args:
        tokenizer: of the checkpoint.
        image_marker, video_marker: special tokens that stand for a medium until its own text replaces them.
    """

    label_rule: str = "InternVL: an answer's turn without the tokens of its header and without its last one"

    def __init__(self, tokenizer: Any, image_marker: str, video_marker: str) -> None:
        self.markers: Mapping[str, str | None] = {"image": image_marker, "video": video_marker}
        self.end = END
        header = tokenizer(f"{START}assistant\n", add_special_tokens=False)["input_ids"]
        self.learned = slice(len(header), -1)

    def check(self, sample: Sample) -> None:
        """Raises:
        DataError: turns do not alternate, media and tags differ, or a text holds a marker of the template."""
        check_speakers(sample)
        tags = tagged(sample)
        if tags and sorted(tags) != list(range(len(sample.media))):
            raise DataError(f"sample {sample.key}: {len(sample.media)} media and tags for {sorted(tags)}")
        for turn in sample.turns:
            refuse_markers(sample, turn.text, (*self.markers.values(), START, END))
        if sample.media and not tags and not any(turn.role == "user" for turn in sample.turns):
            raise DataError(f"sample {sample.key}: {len(sample.media)} media and no question to put them before")

    def order(self, sample: Sample) -> list[int]:
        """The places of the media in the sample, in the order of the text; all of them, where it has no tag."""
        return tagged(sample) or list(range(len(sample.media)))

    def rendered(self, sample: Sample) -> Rendered:
        """The whole conversation. Errors as `check`."""
        return self._rendered(sample, opened=False)

    def prompt(self, sample: Sample) -> Rendered:
        """Everything before the last answer, with the assistant's turn opened. Errors as `check`."""
        return self._rendered(sample, opened=True)

    def _rendered(self, sample: Sample, *, opened: bool) -> Rendered:
        self.check(sample)
        turns = [(turn.role, turn.text) for turn in sample.turns]
        if not tagged(sample) and sample.media:
            first = next(place for place, (role, _) in enumerate(turns) if role == "user")
            tags = "".join(f"<media:{number}>\n" for number in range(len(sample.media)))
            turns[first] = ("user", tags + turns[first][1])
        if opened and turns and turns[-1][0] == "assistant":
            turns = turns[:-1]
        text = "" if turns and turns[0][0] == "system" else f"{START}system\n{SYSTEM}{END}\n"
        answers: list[tuple[int, int]] = []
        written: list[tuple[int, int]] = []
        for role, words in turns:
            begin = len(text)
            text += f"{START}{role}\n"
            if role == "assistant":
                text += words
            else:
                text = self._write(sample, text, words, written)
            text += f"{END}\n"
            if role == "assistant":
                answers.append((begin, len(text)))
        if opened:
            text += f"{START}assistant\n"
        return Rendered(text, tuple(answers), tuple(written), opened)

    def _write(self, sample: Sample, text: str, words: str, written: list[tuple[int, int]]) -> str:
        """The text with these words behind it, a marker in place of each media tag; line breaks stay as they are.

        The frames of a video are lines, so a line break stands between them and what follows.
        """
        place = 0
        for tag in MEDIA.finditer(words):
            first, last = tag.start() + tag[0].index("<"), tag.start() + tag[0].index(">") + 1
            text = _noted(text, words[place:first], written)
            kind = sample.media[int(tag[1])].kind
            text += self.markers[kind] or ""
            if kind == "video" and words[last : last + 1] not in ("", "\n"):
                text += "\n"
            place = last
        return _noted(text, words[place:], written)


def _noted(text: str, words: str, written: list[tuple[int, int]]) -> str:
    if words:
        written.append((len(text), len(text) + len(words)))
    return text + words
