"""One of several processes that compute a run together: `python -m harness.training.worker RUN_DIR RANK`.

`harness.training.launch` starts it and reads how it ended. It is not meant to be started by hand.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.common.exits import STOPPED, explained
from harness.common.files import read_json, write_json
from harness.common.signals import terminate_as_interrupt
from harness.training.processes import FOLDER, JOB

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.training.run import Prepared


def main() -> None:
    run_dir, rank = Path(sys.argv[1]), int(sys.argv[2])
    threading.Thread(target=_end_with_parent, daemon=True).start()
    code = 0
    with terminate_as_interrupt():
        try:
            _work(run_dir, rank)
        except KeyboardInterrupt:
            code = _write_outcome(run_dir, rank, "stopped; nothing is lost", STOPPED)
        except Exception as error:  # noqa: BLE001 - whatever it is, the parent reports it once
            code = _write_outcome(run_dir, rank, *explained(error))
    sys.stdout.flush()
    sys.stderr.flush()
    # Not the interpreter's own end: it would wait for a collective that the others will never join.
    os._exit(code)


def _work(run_dir: Path, rank: int) -> None:
    # Imported here, so that an import that fails is reported like any other error.
    from harness.common.progress import Progress
    from harness.records.run_folder import read_recipe
    from harness.training import launch, processes
    from harness.training.gate_stores import compute_reference_losses
    from harness.training.run import join

    job = read_json(run_dir / FOLDER / JOB, "the job of a worker")
    recipe = read_recipe(run_dir)
    tasks: dict[str, Callable[[Prepared], None]] = {
        "reference": compute_reference_losses,
        "train": lambda run: launch.train_here(run, began=job["began"]),
    }
    processes.init_process_group(rendezvous=Path(job["rendezvous"]), rank=rank, world=job["world"])
    tasks[job["task"]](join(recipe, Progress(quiet=rank > 0)))
    processes.destroy_process_group()


def _write_outcome(run_dir: Path, rank: int, message: str, code: int) -> int:
    """Write how this process ended, for the parent, which reports the earliest failure; returns `code`."""
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
