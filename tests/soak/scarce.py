"""Few open files, or little shared memory: how a run ends that gets no more, and what it comes to once it does."""

from __future__ import annotations

import ctypes
import json
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from harness.common.exits import explained
from harness.config.recipe import Recipe

from . import evaluated
from .forks import in_a_fork

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
    plain = evaluated.recipe_in(folder).model_dump(mode="json")
    plain["name"] = "scarce"
    plain["train"] |= {"workers": WORKERS}
    plain["devices"] |= {"tower_cache_gb": 0.0}
    return Recipe.model_validate_json(json.dumps(plain))


def attempt(folder: Path, scarcity: Scarcity) -> dict[str, Any]:
    """code, message and seconds of an attempt in a process that gets no more than that."""
    ended, status = in_a_fork(lambda: _attempt(folder, scarcity))
    return ended or {"code": -1, "message": f"status {status}"}


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
        evaluated.command(recipe_in(folder))
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
