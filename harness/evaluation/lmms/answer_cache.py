"""Answers on disk, one a line, as soon as they are there: a killed evaluation goes on at the next item.

An answer is named by all that decides it: the checkpoint, how it computes, the task and document, what was sent and
how the answer was to be found. So a file may hold answers of an earlier checkpoint or prompt; they have other names
and are not used. Each process writes a file of its own and reads those of all.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, Final

from harness.common.errors import HarnessError
from harness.common.files import check_kind
from harness.common.hashing import digest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

SCHEMA: Final = 1
Chunk = dict[int, Any]
"""What is answered together, by its place among the requests."""


class ShareAnswered(Exception):
    """This process has answered its share; others have the rest, so there is nothing to score yet."""


def answers_file(result: Path, process: int) -> Path:
    """Where a process writes the answers of a result: beside it, and kept, as they are what the score rests on."""
    return result.with_name(f"{result.stem}.answers-{process}.jsonl")


def answer_id(made_by: Mapping[str, Any], request: Mapping[str, Any]) -> str:
    """The name of an answer.

    Args:
        made_by: checkpoint and settings, the same for all answers of a result.
        request: task, document, prompt, options, media and generation settings.
    """
    return digest([SCHEMA, made_by, request])[:32]


class Answers:
    """The answers to one benchmark by one checkpoint.

    Args:
        result: the result file that they belong to.
        process: number of this process, which names its file.
    """

    def __init__(self, result: Path, process: int = 0) -> None:
        self._answers: dict[str, Any] = {}
        for path in sorted(result.parent.glob(answers_file(result, 0).name.replace("-0.", "-*."))):
            self._answers.update(_read(path))
        self._path = answers_file(result, process)
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Answers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def get(self, name: str) -> Any | None:
        """The answer of that name, or None."""
        return self._answers.get(name)

    def add(self, answers: Iterable[tuple[str, Mapping[str, Any], Any]]) -> None:
        """Keep answers that were computed together: name, fields that describe the item to a reader, and the answer.
        They are with the operating system when this returns, so that they outlive this process."""
        lines = []
        for name, description, answer in answers:
            self._answers[name] = answer
            lines.append(json.dumps({"id": name, **description, "answer": answer, "sum": _sum(name, answer)}) + "\n")
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            drop_torn_tail(self._path)
            self._file = self._path.open("ab")
        self._file.write("".join(lines).encode())
        self._file.flush()


@dataclass
class AnswerCollector:
    """Collects the answers of one result: those that are kept, and those that this process computes.

    Attributes:
        made_by: what decides an answer beside the request: the checkpoint's digest and how it computes.
        share: (this process, number of processes).
        advance: called with the number of items that are answered, those of a killed evaluation included.
        sent: (task, key, prompt, continuations) of every item that was sent.
    """

    answers: Answers
    made_by: Mapping[str, Any]
    advance: Callable[[int], None]
    share: tuple[int, int] = (0, 1)
    sent: list[tuple[str, str, str, tuple[str, ...]]] = field(default_factory=list)

    def collect(
        self,
        requests: Sequence[Mapping[str, Any]],
        chunks: Sequence[Chunk],
        compute: Callable[[Sequence[Chunk]], Iterable[Mapping[int, Any]]],
    ) -> list[Any]:
        """The answer of every item, as plain values.

        Args:
            requests: of each item, what decides its answer; `task`, `key` and `prompt` are written beside it.
            chunks: every item once; each chunk is computed by one process.
            compute: yields the answers of chunks, one after the other.

        Raises:
            ShareAnswered: items are left to other processes.
        """
        names = [answer_id(self.made_by, request) for request in requests]
        process, processes = self.share
        missing = [
            {i: item for i, item in chunk.items() if self.answers.get(names[i]) is None}
            for chunk in chunks[process::processes]
        ]
        missing = [chunk for chunk in missing if chunk]
        done = sum(map(len, chunks[process::processes])) - sum(map(len, missing))
        self.advance(done)
        for computed in compute(missing) if missing else ():
            described = {i: {name: requests[i][name] for name in ("task", "key", "prompt")} for i in computed}
            self.answers.add((names[i], described[i], answer) for i, answer in computed.items())
            done += len(computed)
            self.advance(done)
        answers = [self.answers.get(name) for name in names]
        if processes > 1:
            raise ShareAnswered
        absent = [
            f"{request['task']} {request['key']}"
            for request, answer in zip(requests, answers, strict=True)
            if answer is None
        ]
        if absent:
            raise HarnessError(f"{len(absent)} of {len(requests)} requests got no answer, first {absent[0]}")
        return answers


def sent_prompt(result: Path, task: str, key: str) -> str | None:
    """What was sent for an item, out of the answers beside a result; the newest where it was sent several times. None
    where no answer to it is kept."""
    prompt = None
    for path in sorted(result.parent.glob(answers_file(result, 0).name.replace("-0.", "-*."))):
        for entry in _entries(path):
            if (entry.get("task"), entry.get("key")) == (task, key):
                prompt = str(entry["prompt"])
    return prompt


def drop_torn_tail(path: Path) -> None:
    """Cut a file of lines behind its last whole line: a kill may have come in the middle of one."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        text = file.read()
        whole = text.rfind(b"\n") + 1
        if whole < len(text):
            file.truncate(whole)


def _read(path: Path) -> dict[str, Any]:
    return {entry["id"]: entry["answer"] for entry in _entries(path)}


def _entries(path: Path) -> Iterator[dict[str, Any]]:
    """Whole lines that are as they were written; another process may be writing the last one, and a damaged one is
    asked again."""
    check_kind(path)
    for line in path.read_bytes().splitlines():
        try:
            entry = json.loads(line)
            whole = entry["sum"] == _sum(entry["id"], entry["answer"])
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
        if whole:
            yield entry


def _sum(name: str, answer: Any) -> str:
    return digest([name, answer])[:16]
