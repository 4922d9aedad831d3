"""A small training, killed between two checkpoints; the damage that can befall its files; and how it goes on."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from harness import pipeline
from harness.common.exits import explained
from harness.common.progress import Progress
from harness.config.recipe import Recipe
from harness.records.ledger import Ledger, read_steps
from harness.records.record import read_record, strip_times
from tests.forked import context
from tests.harness.worlds.tiny import tiny_recipe

from .readers import Opened, is_unread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

STEPS: Final = 8
KILLED_AFTER: Final = 5
"""The step that was the last in the ledger; the newest checkpoint is of step 4, the one before of step 2."""
FOLDERS: Final = ("data", "weights", "stores", "results")
TOLD: Final = (2, 3, 4, 5)
"""Exit codes of errors that are told."""


def recipe_in(folder: Path, processes: int = 1) -> Recipe:
    """The run below a folder, in so many processes; the same run wherever the folder is."""
    made = tiny_recipe(folder).model_dump(mode="json")
    made["name"] = "stopped"
    made["train"] |= {"steps": STEPS, "checkpoint_every": 2, "workers": 0}
    made["gate"] = {"keep_ratio": 0.5, "cycle_steps": 2, "dense_steps": 1, "warmup_steps": 0}
    made["evaluate"] = {"benchmarks": [], "at": [0.25, 1.0]}
    made["track"] = {"mlflow": False}
    if processes > 1:
        made["train"]["micro_batch"] //= processes
        made["devices"] |= {"processes": processes, "threads": 1}
    return Recipe.model_validate_json(json.dumps(made))


def go_on(folder: Path, processes: int = 1) -> None:
    """The run's command, from where it is to its record."""
    recipe, progress = recipe_in(folder, processes), Progress(quiet=True)
    for name in ("reference", "train"):
        pipeline.run_stage(recipe, name, progress, pipeline.Planner())
    prepared = pipeline.prepare(recipe, progress)
    pipeline.finish(prepared)


def go_on_to_tables(folder: Path) -> None:
    """The run's command with all that comes after the record."""
    pipeline.run([recipe_in(folder)], Progress(quiet=True))


def killed(folder: Path) -> None:
    """Work until the step that is the last, and be killed in it; what was read until then is kept beside the
    folder."""
    append: Callable[..., None] = Ledger.append
    opened = Opened(folder)

    def append_and_die(ledger: Ledger, event: str, **fields: Any) -> None:
        append(ledger, event, **fields)
        if event == "step" and fields["step"] == KILLED_AFTER:
            opened.keep(read_by(folder))
            os.kill(os.getpid(), signal.SIGKILL)

    Ledger.append = append_and_die  # type: ignore[method-assign]
    go_on(folder)


def make_stopped(folder: Path, work: Callable[..., None] = killed, *arguments: Any) -> None:
    """Start the run in a process of its own, which is killed."""
    child = context().Process(target=work, args=(folder, *arguments))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL


def read_by(folder: Path) -> Path:
    """Where the names of the files that a killed process read are kept."""
    return folder.with_name(f"{folder.name}-read.json")


def run_dir(folder: Path) -> Path:
    (found,) = (folder / "results" / "runs").iterdir()
    return found


def outcome(folder: Path) -> dict[str, Any]:
    """What must be the same however often a run was stopped: models, steps, choices, running losses, record."""
    difficulty = sorted((run_dir(folder) / "difficulty").glob("m.e*.npy"))[-1]
    return {**training_outcome(folder), "difficulty": [difficulty.name, np.load(difficulty).tobytes().hex()]}


def training_outcome(folder: Path) -> dict[str, Any]:
    """What of `outcome` stands in models, ledger and record."""
    run = run_dir(folder)
    models = sorted(run.glob("checkpoints/step-*/model.safetensors"))
    clocks = ("seconds", "cpu", "time", "attempt", "peak_bytes", "clock")
    steps = read_steps(run / "ledger.jsonl")
    return {
        "models": {path.parent.name: _sha256(path) for path in models},
        "steps": [{key: value for key, value in step.items() if key not in clocks} for step in steps],
        "record": strip_times(read_record(run / "record.json")),
    }


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# --- damage ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Damage:
    """One file, harmed in one way."""

    file: str
    kind: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.file}"

    def apply(self, folder: Path) -> None:
        path = folder / self.file
        content = path.read_bytes()
        match self.kind:
            case "deleted":
                path.unlink()
            case "a folder":
                path.unlink()
                path.mkdir()
            case _:
                path.write_bytes(_harmed(content, self.kind))


KINDS: Final = ("cut", "empty", "flip 0.03", "flip 0.5", "flip 0.97", "wrong type", "deleted", "a folder")


def _harmed(content: bytes, kind: str) -> bytes:
    match kind.split():
        case ["cut"]:
            return content[: len(content) // 2]
        case ["empty"]:
            return b""
        case ["wrong", "type"]:
            return b"[1]\n"
        case ["flip", part]:
            changed = bytearray(content)
            place = min(len(content) - 1, int(float(part) * len(content)))
            changed[place] ^= 1 << (place % 8)
            return bytes(changed)
        case _:
            raise ValueError(kind)


def files_of(folder: Path) -> list[str]:
    """Every file that the stopped run left, by its path from the folder."""
    paths = (path for name in FOLDERS for path in sorted((folder / name).rglob("*")))
    return [str(path.relative_to(folder)) for path in paths if path.is_file()]


def damages(folder: Path) -> Iterator[Damage]:
    """Every kind of every file; of clips beyond the first of their folder and of files that nobody reads one kind, of
    an empty file what can be."""
    clips = set()
    for file in files_of(folder):
        path = folder / file
        again = is_unread(file) or (path.suffix == ".mp4" and path.parent in clips)
        clips.add(path.parent)
        full = path.stat().st_size > 0
        for kind in KINDS[3 if full else 5 :][:1] if again else KINDS[0 if full else 5 :]:
            yield Damage(file, kind)


def few(wanted: Sequence[Damage], cases: Iterable[Damage]) -> list[Damage]:
    """The cases of some kinds and ends of paths."""
    return [case for like in wanted for case in cases if case.file.endswith(like.file) and case.kind == like.kind]


def survives(
    stopped: Path,
    damage: Damage,
    whole: dict[str, Any],
    folder: Path,
    *,
    command: Callable[[Path], None] = go_on,
    outcome: Callable[[Path], dict[str, Any]] = outcome,
) -> str | None:
    """What went wrong when the run went on after a damage; None where it came to the same end, or was told why
    not."""
    shutil.copytree(stopped, folder)
    damage.apply(folder)
    try:
        command(folder)
    except BaseException as error:  # noqa: BLE001 - whatever comes is judged
        if not isinstance(error, Exception):
            return f"{damage}: {type(error).__name__}: {error}"
        message, code = explained(error)
        if code not in TOLD or "Traceback" in message:
            return f"{damage}: exit {code}: {message[-1500:]}"
        names = {Path(damage.file).name, str(folder / damage.file), str((folder / damage.file).parent)}
        return None if any(name in message for name in names) else f"{damage}: is not named: {message}"
    finally:
        kept = folder.with_name("kept")
        shutil.rmtree(kept, ignore_errors=True)
        if folder.exists():
            folder.rename(kept)
    after = outcome(kept)
    differing = [key for key in whole if after[key] != whole[key]]
    return f"{damage}: other {', '.join(differing)}" if differing else None
