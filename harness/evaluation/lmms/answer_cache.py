"""Answers on disk, one a line, as soon as they are there: a killed evaluation goes on at the next item.

An answer is named by all that decides it: the checkpoint, how it computes, the task and document, what was sent and
how the answer was to be found. So a file may hold answers of an earlier checkpoint or prompt: nobody asks for them by
that name again. Each process writes a file of its own and reads those of all.
"""

from __future__ import annotations

import json
from typing import IO, TYPE_CHECKING, Any, Final

from harness.common.hashing import digest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path
    from types import TracebackType

SCHEMA: Final = 1


def answers_file(result: Path, process: int) -> Path:
    """Where a process writes the answers of a result: beside it, and kept, as they are what the score rests on."""
    return result.with_name(f"{result.stem}.answers-{process}.jsonl")


def answer_id(made_by: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """The name of an answer.

    Args:
        made_by: checkpoint and settings, the same for all answers of a result.
        asked: task, document, prompt, options, media and generation settings.
    """
    return digest([SCHEMA, made_by, asked])[:32]


class Answers:
    """The answers to one benchmark by one checkpoint.

    Args:
        result: the result file that they belong to.
        process: number of this process, which names its file.
    """

    def __init__(self, result: Path, process: int = 0) -> None:
        self._found: dict[str, Any] = {}
        for path in sorted(result.parent.glob(answers_file(result, 0).name.replace("-0.", "-*."))):
            self._found.update(_read(path))
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
        return self._found.get(name)

    def add(self, answers: Iterable[tuple[str, Mapping[str, Any], Any]]) -> None:
        """Keep answers that were found together: name, what is told of the item to a reader, and the answer. They
        are with the operating system when this returns, so that they outlive this process."""
        lines = []
        for name, told, answer in answers:
            self._found[name] = answer
            lines.append(json.dumps({"id": name, **told, "answer": answer}) + "\n")
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            drop_torn_tail(self._path)
            self._file = self._path.open("ab")
        self._file.write("".join(lines).encode())
        self._file.flush()


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
    """Whole lines that can be read; another process may be writing the last one, and a damaged one is asked again."""
    found: dict[str, Any] = {}
    for line in path.read_bytes().splitlines():
        try:
            entry = json.loads(line)
            found[entry["id"]] = entry["answer"]
        except (ValueError, KeyError, TypeError):
            continue
    return found
