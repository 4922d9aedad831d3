"""A family's own chat template: what it writes, which of it the model learns to answer, which of it a person wrote.

transformers' assistant mask needs templates with generation marks, which those of published models do not have: it
is all zeros then. The rule here needs no marks: an answer is what the template writes behind the text of the turns
before it with the assistant's turn opened, up to and with the marker that ends a turn.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from harness.common.errors import DataError, EnvironmentProblem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from harness.data.sample import Sample

MEDIA: Final = re.compile(r"\n?<media:(\d+)>\n?")
LABEL_RULE: Final = "what the template adds for an answer, up to the end marker, tokenized apart from the rest"
_PROBE: Final = ("one probe", "another probe")


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as the template writes it.

    Attributes:
        text: with one marker for each medium.
        answers: (first character, end character) of each answer with the marker that ends it.
        written: likewise of what the user or a system turn wrote.
        asked: the text is an evaluation's: InternVL's training and its evaluations number frames in other ways.
    """

    text: str
    answers: tuple[tuple[int, int], ...]
    written: tuple[tuple[int, int], ...]
    asked: bool = False


class Conversations(Protocol):
    """How a family writes a conversation.

    Attributes:
        markers: what stands for a medium of a kind; None where the family has no such.
        end: the special token that ends an answer.
        label_rule: in words, for the fingerprint.
        learned: which tokens of an answer's piece of the text are learned.
    """

    markers: Mapping[str, str | None]
    end: str
    label_rule: str
    learned: slice

    def check(self, sample: Sample) -> None:
        """Raises:
        DataError: the conversation cannot be written."""

    def rendered(self, sample: Sample) -> Rendered:
        """The whole conversation. Raises DataError where it cannot be written."""

    def prompt(self, sample: Sample) -> Rendered:
        """Everything before the last answer, with the assistant's turn opened. Errors as `rendered`."""

    def order(self, sample: Sample) -> list[int]:
        """The places of the media in the sample, in the order of the text."""


class Chat:
    """The template of a checkpoint.

    Args:
        render: the template's text of messages, and whether the assistant's turn is opened behind them.
        special: the tokenizer's special tokens.
        end_of_text: that of the tokenizer; it ends the answers of a template that ends them with a space alone, as
            the training of LLaVA's Vicuna models does. None where the tokenizer has none.
        image_marker, video_marker: what the template writes for a medium; None where the family has no such.
        where: the checkpoint, for messages.

    Raises:
        EnvironmentProblem: the template cannot be used, with the reason.
    """

    label_rule: str = LABEL_RULE
    learned = slice(None)

    def __init__(
        self,
        render: Callable[[Sequence[dict[str, Any]], bool], str],
        special: Sequence[str],
        end_of_text: str | None,
        image_marker: str | None,
        video_marker: str | None,
        where: str,
    ) -> None:
        self._template = render
        self._closing = ""
        self.markers: Mapping[str, str | None] = {"image": image_marker, "video": video_marker}
        self.end = self._end_marker(special, end_of_text, where)

    def _render(self, messages: Sequence[dict[str, Any]], opened: bool) -> str:
        """What the template writes; answers that it does not end are given with what ends them."""
        if self._closing:
            messages = [_closed(message, self._closing) for message in messages]
        return self._template(messages, opened)

    def _end_marker(self, special: Sequence[str], end_of_text: str | None, where: str) -> str:
        """The special token that stands right behind an answer."""
        question, answer = _PROBE
        asked = _message("user", [_text(question)])
        opened = self._render([asked], True)
        whole = self._render([asked, _message("assistant", [_text(answer)])], False)
        if not whole.startswith(opened) or answer not in whole[len(opened) :]:
            raise EnvironmentProblem(
                f"{where}: its chat template has no stable prefix: a conversation does not begin with what opens its "
                "answer",
                hint="use a checkpoint whose template only adds text when a turn is added",
            )
        behind = whole[len(opened) :].split(answer, 1)[1]
        closing = [token for token in special if token and behind.startswith(token)]
        if not behind.strip() and end_of_text:
            self._closing, self.label_rule = end_of_text, f"{LABEL_RULE}; it is written behind each answer"
            closing = [end_of_text]
        if not closing:
            raise EnvironmentProblem(
                f"{where}: its chat template ends an answer with {behind[:20]!r}, which is no special token",
                hint="nothing would teach the model to stop",
            )
        return max(closing, key=len)

    def messages(self, sample: Sample) -> list[dict[str, Any]]:
        """The turns with their media as parts of their content.

        Raises:
            DataError: a text holds a marker of the template, media and tags differ, or two turns in a row are of one
                speaker.
        """
        messages: list[dict[str, Any]] = []
        seen: list[int] = []
        check_speakers(sample)
        for turn in sample.turns:
            content = self._content(sample, turn.text, seen)
            messages.append(_message(turn.role, content))
        if sorted(seen) != list(range(len(sample.media))):
            raise DataError(f"sample {sample.key}: {len(sample.media)} media and tags for {sorted(seen)}")
        return messages

    def _content(self, sample: Sample, text: str, seen: list[int]) -> list[dict[str, Any]]:
        content: list[dict[str, Any]] = []
        begin = 0
        for tag in [*MEDIA.finditer(text), None]:
            words = text[begin : len(text) if tag is None else tag.start()]
            if words or (tag is None and not content):
                refuse_markers(sample, words, (*self.markers.values(), self.end))
                content.append(_text(words))
            if tag is not None:
                number = int(tag[1])
                if number >= len(sample.media):
                    raise DataError(f"sample {sample.key}: tag <media:{number}> and {len(sample.media)} media")
                seen.append(number)
                content.append({"type": sample.media[number].kind})
                begin = tag.end()
        return content

    def check(self, sample: Sample) -> None:
        """Errors as `messages`."""
        self.messages(sample)

    def order(self, sample: Sample) -> list[int]:
        """The places of the media in the sample, in the order of the text."""
        return tagged(sample)

    def rendered(self, sample: Sample) -> Rendered:
        """The whole conversation.

        Raises:
            DataError: as `messages`; or the template writes an answer differently once another turn follows it, or
                leaves a medium out.
        """
        messages = self.messages(sample)
        text = self._render(messages, False)
        answers: list[tuple[int, int]] = []
        for place, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            opened = self._render(messages[:place], True)
            through = self._render(messages[: place + 1], False)
            start = len(opened)
            stop = _end_of(through, start, message["content"][0]["text"], self.end)
            if not through.startswith(opened) or stop is None or text[:stop] != through[:stop]:
                raise DataError(
                    f"sample {sample.key}: the chat template writes answer {len(answers)} differently alone and "
                    "within the conversation, so which of its tokens are learned cannot be said"
                )
            answers.append((start, stop))
        self._check_markers(sample, text)
        return Rendered(text, tuple(answers), _written(text, messages))

    def prompt(self, sample: Sample) -> Rendered:
        """Everything before the last answer, with the assistant's turn opened. Errors as `rendered`."""
        messages = self.messages(sample)
        if messages and messages[-1]["role"] == "assistant":
            messages = messages[:-1]
        text = self._render(messages, True)
        self._check_markers(sample, text)
        return Rendered(text, (), _written(text, messages), asked=True)

    def _check_markers(self, sample: Sample, text: str) -> None:
        for kind, marker in self.markers.items():
            wanted = sum(media.kind == kind for media in sample.media)
            count = text.count(marker) if marker else 0
            if count != wanted:
                raise DataError(
                    f"sample {sample.key}: {wanted} media of kind {kind}, and the chat template writes {count} of "
                    "their markers",
                    hint="" if marker else f"the family has no marker for media of kind {kind}",
                )


def check_speakers(sample: Sample) -> None:
    """Raises:
    DataError: two turns in a row are of one speaker, or an answer holds a media tag."""
    speakers = [turn.role for turn in sample.turns if turn.role != "system"]
    for place, role in enumerate(speakers):
        if role != ("user", "assistant")[place % 2]:
            raise DataError(f"sample {sample.key}: turn {place} is the {role}'s; they must take turns")
    if any(turn.role == "assistant" and MEDIA.search(turn.text) for turn in sample.turns):
        raise DataError(f"sample {sample.key}: an answer holds a media tag")


def refuse_markers(sample: Sample, words: str, markers: Iterable[str | None]) -> None:
    """Raises:
    DataError: the text holds one of the markers, which the template alone may write."""
    for marker in markers:
        if marker and marker in words:
            raise DataError(
                f"sample {sample.key}: its text holds {marker}, which the model reads as a mark of its template",
                hint="leave the sample out, or write the text differently",
            )


def tagged(sample: Sample) -> list[int]:
    """The numbers of the media tags, in the order of the text."""
    return [int(tag) for turn in sample.turns for tag in MEDIA.findall(turn.text)]


def marker_places(text: str, markers: Mapping[str, str | None]) -> list[tuple[int, int, str]]:
    """(first character, end character, kind) of each medium's marker, in order.

    Args:
        markers: by kind of medium.
    """
    kinds = {marker: kind for kind, marker in markers.items() if marker}
    pattern = re.compile("|".join(re.escape(marker) for marker in kinds))
    return [(match.start(), match.end(), kinds[match.group()]) for match in pattern.finditer(text)]


def _end_of(text: str, start: int, answer: str, end: str) -> int | None:
    """Where the answer that is written from `start` on ends, its end marker with it; None if it is not there."""
    place = text.find(end, start)  # no text holds the marker
    # Some templates trim, others write a space before the answer.
    return place + len(end) if place >= 0 and text[start:place].strip() == answer.strip() else None


def _written(text: str, messages: Sequence[dict[str, Any]]) -> tuple[tuple[int, int], ...]:
    """Where the words of users and system turns stand."""
    spans: list[tuple[int, int]] = []
    place = 0
    for message in messages:
        for part in message["content"]:
            words = part.get("text", "").strip()
            start = text.find(words, place) if words else -1
            if start >= 0:
                place = start + len(words)
                if message["role"] != "assistant":
                    spans.append((start, place))
    return tuple(spans)


def _message(role: str, content: list[dict[str, Any]]) -> dict[str, Any]:
    return {"role": role, "content": content}


def _closed(message: dict[str, Any], closing: str) -> dict[str, Any]:
    """An assistant's message whose text ends with what closes it; any other as it is."""
    if message["role"] != "assistant":
        return message
    *before, last = message["content"]
    return _message("assistant", [*before, _text(last["text"] + closing)])


def _text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}
