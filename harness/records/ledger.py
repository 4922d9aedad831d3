"""The ledger: what happened, step by step, as append-only JSON lines. Everything reported comes from it.

One object a line, each with `schema`, `event` and `time` (UTC). An attempt begins with a `start` event that names
the first step it does; when a killed run resumes from a checkpoint, the new `start` supersedes the step events at
and after its step, and nothing is rewritten. A line that a kill tore in two is dropped when the file is opened.
Each line ends with a checksum of what stands before it in the line; lines of earlier versions, which have none, come
first or not at all.

`start` and `end` hold the reading of a monotonic clock as `clock`, in seconds: the seconds of all events between them
add up to their difference, but for the `load` stage, which was over at `start`.
"""

from __future__ import annotations

import json
import os
import re
import time
import zlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from harness.common.errors import DataError
from harness.common.files import check_kind, has_file, problems_of, read_json, write_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

BESIDE: Final = "ledger-beside.jsonl"
"""What an evaluation writes while another process trains the same run: two machines must not append to one file."""
_BESIDE_NOTE: Final = "ledger-beside.json"
"""How many lines that file has: a training has no other sign of it."""
SCHEMA: Final = 1
_LINE: Final[dict[str, Any]] = {"event": str}
_EVENTS: Final[dict[str, dict[str, Any]]] = {
    "start": {"step": int},
    "step": {"step": int},
    "stage": {"stage": str, "seconds": dict},
    "end": {"step": int},
    "surroundings": {"where": dict},
    "restart": {"why": str},
}
"""What a line of each event must hold to be read at all; `totals.check_steps` looks at what a step counts."""
_SEAL: Final = re.compile(rb',"crc32":([0-9]+)}\s*$')
_LAST_NUMBER: Final = re.compile(rb',"[^"]*":([0-9]+)}\s*$')
"""A seal, also one whose name was damaged."""
_REMEDY: Final = "the file was edited or damaged; move it away to start this run anew"


class Clocks:
    """Wall time split into phases. `lap(phase)` gives everything since the last lap to one phase, so the phases
    add up to the wall time by construction: counted in whole microseconds, exactly."""

    def __init__(self, began: float | None = None, *, now: Callable[[], float] = time.perf_counter) -> None:
        """
        Args:
            began: `now()` at the first moment that counts, also one of another process; None is this moment.
            now: seconds of a monotonic clock.
        """
        self._now = now
        self._last = _microseconds(now() if began is None else began)
        self._phases: dict[str, int] = {}

    @property
    def reading(self) -> float:
        """Seconds of the clock at the last lap. The laps between two readings add up to their difference."""
        return self._last / 1e6

    def lap(self, phase: str) -> None:
        now = _microseconds(self._now())
        self._phases[phase] = self._phases.get(phase, 0) + now - self._last
        self._last = now

    def take(self) -> dict[str, float]:
        """The seconds by phase since the last `take`; the time that goes on from here belongs to the next lap."""
        seconds = {phase: value / 1e6 for phase, value in self._phases.items()}
        self._phases = {}
        return seconds


def _microseconds(seconds: float) -> int:
    return round(seconds * 1e6)


class Ledger:
    """Writes one run's ledger. Each line is flushed to the operating system, so that only a machine that goes
    down, not a process that is killed, can lose one."""

    def __init__(self, path: Path | None) -> None:
        """None keeps no ledger: only the main process of a run writes one."""
        self._file = None
        self.attempt = 1
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        _drop_torn_tail(path)
        self.attempt = 1 + sum(event["event"] == "start" for event in read_events(path))
        self._file = path.open("a", encoding="utf-8")

    def append(self, event: str, **fields: Any) -> None:
        if self._file is None:
            return
        line = {
            "schema": SCHEMA,
            "event": event,
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "attempt": self.attempt,
            **fields,
        }
        self._file.write(_sealed(json.dumps(line, allow_nan=False, separators=(",", ":"))) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Force what was written to disk; called before a checkpoint counts as complete."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_events(path: Path) -> list[dict[str, Any]]:
    """Every event in the order written, those of evaluations beside the training last; empty when there is no ledger
    yet.

    Raises:
        DataError: a line other than a torn last one is not what this version writes.
    """
    events: list[dict[str, Any]] = []
    for file in dict.fromkeys((path, path.with_name(BESIDE))):
        check_kind(file)
        events += _lines(file) if file.exists() else ()
    return events


def read_steps(path: Path) -> list[dict[str, Any]]:
    """The step events that count, in order of step: those that a later attempt did again are left out."""
    steps: list[dict[str, Any]] = []
    for event in read_events(path):
        if event["event"] == "start":
            steps = [done for done in steps if done["step"] < event["step"]]
        elif event["event"] == "step":
            steps.append(event)
    return steps


def finished_step(path: Path) -> int | None:
    """The number of steps of a training that came to its end, or None."""
    ends = [event["step"] for event in read_events(path) if event["event"] == "end"]
    return int(ends[-1]) if ends else None


def note_beside(run_dir: Path) -> None:
    """Write down how many lines evaluations beside the training have written; the one that writes does it."""
    lines = sum(1 for _ in _lines(run_dir / BESIDE))
    write_json(run_dir / _BESIDE_NOTE, {"schema": SCHEMA, "lines": lines}, sealed=True)


def check_beside(run_dir: Path) -> None:
    """Look whether all that evaluations beside the training have written is there.

    Raises:
        DataError: lines or the file are gone, or damaged: the record would lack their seconds.
    """
    note, path = run_dir / _BESIDE_NOTE, run_dir / BESIDE
    if not has_file(note):
        return
    remedy = f"bring it back; or delete {note}, and the record lacks the seconds of evaluations beside the training"
    what, hint = "the note of evaluations beside a training", f"delete it, and look whether {path} is whole"
    noted = read_json(note, what, schema=SCHEMA, shape={"lines": int}, hint=hint)["lines"]
    held = sum(1 for _ in _lines(path)) if has_file(path) else 0
    if held < noted:
        raise DataError(f"{path}: holds {held} of the {noted} lines that were written to it", hint=remedy)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        sealed = False
        for number, content in enumerate(file, start=1):
            if not content.endswith(b"\n"):
                return
            if not content.strip():
                continue
            seal, number_last = _SEAL.search(content), _LAST_NUMBER.search(content)
            matches = number_last is not None and int(number_last[1]) == zlib.crc32(content[: number_last.start()])
            # A line without a seal is of an earlier version, unless one that fits stands there under another name.
            changed = (sealed or matches) if seal is None else not matches
            sealed = sealed or seal is not None
            if changed:
                raise DataError(f"{path}:{number}: is not as it was written (checksum)", hint=_REMEDY)
            try:
                line = json.loads(content.decode("utf-8"))
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}:{number}: not a ledger line ({error})", hint=_REMEDY) from error
            if isinstance(line, dict) and line.get("schema") != SCHEMA:
                raise DataError(
                    f"{path}:{number}: ledger schema {line.get('schema')}, this version reads {SCHEMA}", hint=_REMEDY
                )
            problems = problems_of(line, _LINE, "")
            problems = problems or problems_of(line, _EVENTS.get(line["event"], {}), "")
            if problems:
                raise DataError(f"{path}:{number}: not a ledger line ({'; '.join(problems)})", hint=_REMEDY)
            if line.pop("crc32", None) is not None and seal is None:
                raise DataError(f"{path}:{number}: is not as it was written (checksum)", hint=_REMEDY)
            yield line


def _sealed(text: str) -> str:
    """A JSON object with the checksum of what stands before it."""
    return f'{text[:-1]},"crc32":{zlib.crc32(text[:-1].encode())}}}'


def _drop_torn_tail(path: Path) -> None:
    if not path.exists() or path.stat().st_size == 0:
        return
    with path.open("rb+") as file:
        content = file.read()
        if not content.endswith(b"\n"):
            file.truncate(content.rfind(b"\n") + 1)
