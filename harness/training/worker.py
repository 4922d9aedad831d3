"""One of several processes that compute a run together: `python -m harness.training.worker RUN_DIR RANK`.

`harness.training.launch` starts it and reads how it ended. It is not meant to be started by hand.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.common.exits import STOPPED, explained, terminate_as_interrupt
from harness.common.files import write_json
from harness.training.launch import FOLDER, JOB

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.training.prepared import Prepared


def main() -> None:
    run_dir, rank = Path(sys.argv[1]), int(sys.argv[2])
    threading.Thread(target=_end_with_parent, daemon=True).start()
    code = 0
    with terminate_as_interrupt():
        try:
            _work(run_dir, rank)
        except KeyboardInterrupt:
            code = _told(run_dir, rank, "stopped; nothing is lost", STOPPED)
        except Exception as error:  # noqa: BLE001 - whatever it is, the parent says it once
            code = _told(run_dir, rank, *explained(error))
    sys.stdout.flush()
    sys.stderr.flush()
    # Not the interpreter's own end: it would wait for a collective that the others will never join.
    os._exit(code)


def _work(run_dir: Path, rank: int) -> None:
    from harness.common.progress import Progress
    from harness.config.recipe import Recipe
    from harness.training import gate_stores as gating
    from harness.training import processes
    from harness.training import run as training

    job = json.loads((run_dir / FOLDER / JOB).read_text())
    recipe = Recipe.model_validate_json((run_dir / "recipe.json").read_text())
    tasks: dict[str, Callable[[Prepared], None]] = {
        "reference": gating.score,
        "train": lambda run: training.train_here(run, began=job["began"]),
    }
    processes.meet(meeting=Path(job["meeting"]), rank=rank, world=job["world"])
    tasks[job["task"]](training.join(recipe, Progress(quiet=rank > 0)))
    processes.part()


def _told(run_dir: Path, rank: int, message: str, code: int) -> int:
    """Leave word for the parent, which reads the words of the earliest."""
    outcome: dict[str, Any] = {"schema": 1, "message": message, "code": code, "time": time.time()}
    write_json(run_dir / FOLDER / f"outcome-{rank}.json", outcome)
    return code


def _end_with_parent() -> None:
    """The parent holds the other end of stdin: when it is gone, so are this process and those that load its data."""
    while os.read(0, 1):
        continue
    os.killpg(os.getpgid(0), signal.SIGKILL)


if __name__ == "__main__":
    main()
