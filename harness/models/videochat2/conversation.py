"""VideoChat2's conversations as text: who says what, and which words are learned.

    {instruction} [INST] <Video></Video> [/INST] [INST] {question} [/INST] {answer} </s> [INST] {question} ...

The visual tokens stand between `<Video>` and `</Video>`, and the text before and behind them is tokenized apart. The
instruction is the sample's system turn; the QFormer reads it too. Every answer is learned with its `</s>`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from harness.common.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.data.sample import Sample

MEDIA: Final = re.compile(r"<media:(\d+)>")
_TAG: Final = re.compile(r"<media:\d+>\n|\n?<media:\d+>")
"""A tag with the line break that joins it to its question."""
HUMAN, HUMAN_END, ANSWER_END = "[INST]", "[/INST]", "</s>"
TAGS: Final = {"video": ("<Video>", "</Video>"), "image": ("<Image>", "</Image>")}


@dataclass(frozen=True, slots=True)
class Block:
    """An answer and what follows it up to the next answer; either may be empty.

    Attributes:
        learned: the answer with its end, or several where nothing is asked between them.
        asked: the question with its markers.
        words: the question alone, as it stands in `asked`.
    """

    learned: str
    asked: str
    words: str = ""

    @property
    def text(self) -> str:
        return " ".join(part for part in (self.learned, self.asked) if part)


@dataclass(frozen=True, slots=True)
class Conversation:
    """A sample's turns as text.

    Attributes:
        instruction: what the QFormer reads.
        before: the text in front of the visual tokens; empty where there are none.
        spoken: the part of `before`, or of the first block, that is the instruction.
        blocks: the text behind the visual tokens, or all of it.
    """

    instruction: str
    before: str
    spoken: str
    blocks: tuple[Block, ...]

    @property
    def after(self) -> str:
        return " ".join(block.text for block in self.blocks)


def check(sample: Sample, frames: int) -> None:
    """What can be said of a conversation without a tokenizer.

    Raises:
        DataError: speakers do not take turns, the media and its tag do not match, or a text holds the mark that
            ends the visual tokens.
    """
    turns = [turn for turn in sample.turns if turn.role != "system"]
    for place, turn in enumerate(turns):
        if turn.role != ("user", "assistant")[place % 2]:
            raise DataError(f"sample {sample.key}: turn {place} is the {turn.role}'s; they must take turns")
        named = MEDIA.findall(turn.text)
        if named and place:
            raise DataError(f"sample {sample.key}: turn {place} holds <media:{named[0]}>; only the first one may")
    tags = len(MEDIA.findall(turns[0].text)) if turns else 0
    if tags != len(sample.media) or tags > 1:
        raise DataError(
            f"sample {sample.key}: {len(sample.media)} media and {tags} media tags; VideoChat2 takes one video or "
            "image a conversation, named once in the first question, or none"
        )
    if sample.media:
        mark = tags_of(sample, frames)[1]
        if any(mark in turn.text for turn in sample.turns):
            raise DataError(
                f"sample {sample.key}: a text holds {mark}, which ends the visual tokens",
                hint="take the mark out of the annotations",
            )
    elif turns and not turns[0].text.strip():
        raise DataError(f"sample {sample.key}: it has no media and an empty question")


def tags_of(sample: Sample, frames: int) -> tuple[str, str]:
    """The marks around the visual tokens; a video of one frame is an image, as in the official code."""
    return TAGS["image" if sample.media[0].kind == "image" or frames == 1 else "video"]


def training_conversation(sample: Sample, frames: int) -> Conversation:
    """A conversation with all its answers.

    Raises:
        DataError: as `check`, and if a question has no answer.
    """
    check(sample, frames)
    turns = [turn.text for turn in sample.turns if turn.role != "system"]
    if len(turns) % 2 or not turns:
        raise DataError(f"sample {sample.key}: {len(turns)} turns; every question needs an answer")
    return _conversation(sample, frames, turns, opening="", speak=True)


def prompt_conversation(sample: Sample, frames: int, *, opening: str = "", speak: bool = True) -> Conversation:
    """The turns before the last answer.

    Args:
        opening: the words that the answer starts with, such as "Best option:(".
        speak: whether the instruction stands in the text, as in training; False leaves it to the QFormer alone, as
            the official evaluations do.

    Raises:
        DataError: as `check`, and if there is no question.
    """
    check(sample, frames)
    turns = [turn.text for turn in sample.turns if turn.role != "system"]
    turns = turns[:-1] if len(turns) % 2 == 0 else turns
    if not turns:
        raise DataError(f"sample {sample.key}: no question")
    return _conversation(sample, frames, turns, opening=opening, speak=speak)


def _conversation(sample: Sample, frames: int, turns: Sequence[str], *, opening: str, speak: bool) -> Conversation:
    instruction = " ".join(turn.text for turn in sample.turns if turn.role == "system")
    spoken = instruction.lstrip() if speak else ""
    lead = f"{spoken} " if spoken else ""
    if lead and not sample.media:
        lead += " "  # the official text of a conversation without media has two spaces here
    turns = [_TAG.sub("", turns[0]) if sample.media else turns[0], *turns[1:]]
    blocks: list[Block] = []
    before = ""
    if sample.media:
        start, end = tags_of(sample, frames)
        before, lead = f"{lead}{HUMAN} {start}", ""
        blocks.append(Block("", f"{end} {HUMAN_END}"))
    learned = ""
    for place, text in enumerate(turns):
        if place % 2:
            learned = f"{learned} {text} {ANSWER_END}".lstrip() if learned else f"{text} {ANSWER_END}"
        elif text:
            blocks.append(Block(learned, f"{lead}{HUMAN} {text} {HUMAN_END}", text))
            learned, lead = "", ""
    tail = " ".join(part for part in (learned, opening) if part)
    if tail:
        blocks.append(Block(tail, ""))
    return Conversation(instruction.strip(), before, spoken, tuple(blocks))
