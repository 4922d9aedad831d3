"""Few open files, or little shared memory: how a run ends that gets no more, and what it comes to once it does."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from harness import pipeline
from harness.common.exits import explained
from harness.common.progress import Progress
from harness.config.recipe import Recipe

from . import evaluated

ROOT: Final = Path(__file__).parents[2]
WORKERS: Final = 2
MOST_S: Final = 120.0
_NEW_MOUNTS: Final = 0x00020000


@dataclass(frozen=True, slots=True)
class Scarcity:
    """What a run gets: at most so many open files, so much shared memory as `mount` writes it; None: as it is."""

    files: int | None = None
    shm: str | None = None

    def __str__(self) -> str:
        return f"{self.files} open files" if self.files is not None else f"shm of {self.shm}"


KINDS: Final = (Scarcity(files=24), Scarcity(files=64), Scarcity(shm="64k"), Scarcity(shm="1m"))


def recipe_in(folder: Path) -> Recipe:
    """The evaluated run, its clips decoded by loading processes."""
    made = evaluated.recipe_in(folder).model_dump(mode="json")
    made["name"] = "scarce"
    made["train"] |= {"workers": WORKERS}
    made["devices"] |= {"tower_cache_gb": 0.0}
    return Recipe.model_validate_json(json.dumps(made))


def go_on(folder: Path) -> None:
    """The run's command, from where it is to its record."""
    prepared = pipeline.prepare(recipe_in(folder), Progress(quiet=True))
    pipeline.train(prepared)
    pipeline.evaluate(prepared)
    pipeline.finish(prepared)


def attempt(folder: Path, scarcity: Scarcity) -> dict[str, Any]:
    """code, message and seconds of an attempt in a process that gets no more than that. It is forked from one that
    has computed nothing: threads of OpenMP do not survive a fork."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        with os.fdopen(writer, "w") as file:
            json.dump(_attempt(folder, scarcity), file)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        content = file.read()
    _, status = os.waitpid(child, 0)
    ended: dict[str, Any] = json.loads(content) if content else {"code": -1, "message": f"status {status}"}
    return ended


def _attempt(folder: Path, scarcity: Scarcity) -> dict[str, Any]:
    began, message, code = time.monotonic(), "", 0
    if scarcity.shm is not None:
        if ctypes.CDLL(None, use_errno=True).unshare(_NEW_MOUNTS):
            raise OSError(ctypes.get_errno(), "unshare")
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={scarcity.shm}", "tmpfs", "/dev/shm"], check=True)
    if scarcity.files is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (scarcity.files, scarcity.files))
    try:
        go_on(folder)
    except Exception as error:  # noqa: BLE001 - whatever comes is judged
        message, code = explained(error)
    return {"code": code, "message": message, "seconds": time.monotonic() - began}


def main(whole: Path) -> list[dict[str, Any]]:
    """A whole run in `whole`, then each kind beside it: how the first attempt ended, and whether the second came to
    the same end."""
    assert attempt(whole, Scarcity())["code"] == 0
    expected, ended = evaluated.outcome(whole), []
    for kind in KINDS:
        folder = whole.with_name(str(kind).replace(" ", "-"))
        for name in ("data", "weights"):
            shutil.copytree(whole / name, folder / name)
        first, second = attempt(folder, kind), attempt(folder, Scarcity())
        after = evaluated.outcome(folder) if second["code"] == 0 else {}
        differing = [key for key in expected if after.get(key) != expected[key]]
        ended.append({"kind": str(kind), **first, "second": second["code"], "differing": differing})
        sys.stderr.write(f"{ended[-1]}\n")
    return ended


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(Path(sys.argv[1]))) + "\n")
