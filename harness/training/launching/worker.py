"""One of several processes that compute a run together.

`python -m harness.training.launching.worker RUN_DIR LIFELINE` is one of them.
`harness.training.launching.agent` starts it and reads how it ended. It is not meant to be started by hand.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.common.exits import STOPPED, explained
from harness.common.files import read_json, write_json
from harness.common.signals import PASSED_ON
from harness.training.launching.agent import FOLDER, JOB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from harness.training.run import Prepared


def main() -> None:
    run_dir, lifeline = Path(sys.argv[1]), Path(sys.argv[2])
    folder, rank = run_dir / FOLDER, int(os.environ["RANK"])
    threading.Thread(target=_end_with_agent, args=(lifeline,), daemon=True).start()
    _redirect(folder, rank)
    message, code = "", 0
    try:
        with _stoppable():
            # Signals are answered from here on.
            write_json(folder / f"pid-{rank}", {"schema": 1, "pid": os.getpid()}, sealed=True)
            _work(run_dir)
    except KeyboardInterrupt:
        message, code = "stopped; nothing is lost", STOPPED
    except Exception as error:  # noqa: BLE001 - whatever it is, the launcher reports it once
        message, code = explained(error)
    outcome: dict[str, Any] = {"schema": 1, "message": message, "code": code, "time": time.time()}
    write_json(folder / f"outcome-{rank}.json", outcome, sealed=True)
    sys.stdout.flush()
    sys.stderr.flush()
    # Not the interpreter's own end: it would wait for a collective that the others will never join.
    os._exit(code)


@contextmanager
def _stoppable() -> Iterator[None]:
    """A request to stop, which the agent passes on, interrupts what is done within, and nothing after it.

    What torch's agent sends when another process has failed is ignored: an interrupt while this process says how it
    ended itself would be a second error on the terminal.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(PASSED_ON, interrupt)
    try:
        yield
    finally:
        signal.signal(PASSED_ON, signal.SIG_IGN)


def _work(run_dir: Path) -> None:
    # Imported here, so that an import that fails is reported like any other error.
    from harness.common.progress import Progress
    from harness.records.run_folder import read_recipe
    from harness.training.launching import launch, processes
    from harness.training.run import join
    from harness.training.stores.gate_stores import compute_node_losses, compute_reference_losses
    from regate import process

    shape = {"task": str, "attempt": str, "began": int | float}
    job = read_json(run_dir / FOLDER / JOB, "the job of a worker", schema=1, shape=shape)
    recipe = read_recipe(run_dir)
    processes.init_process_group(recipe.devices.timeout_minutes)
    first = process.rank() == 0
    node, nodes = int(os.environ["GROUP_RANK"]), int(os.environ["GROUP_WORLD_SIZE"])
    tasks: dict[str, Callable[[Prepared], None]] = {
        "reference": compute_reference_losses if nodes == 1 else lambda run: compute_node_losses(run, node, nodes),
        # The clock of another machine counts from another moment.
        "train": lambda run: launch.train_here(run, began=job["began"] if first else None),
    }
    tasks[job["task"]](join(recipe, Progress(quiet=not first)))
    processes.destroy_process_group()


def _redirect(folder: Path, rank: int) -> None:
    """The first one shows the progress, which is no answer of the command; what the others print is kept."""
    sys.stdout.flush()
    sys.stderr.flush()
    if rank == 0:
        os.dup2(2, 1)
        return
    log = os.open(folder / f"log-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


def _end_with_agent(lifeline: Path) -> None:
    """The agent holds the other end of a pipe: when it is gone, so are this process and those that load its data."""
    try:
        pipe = os.open(lifeline, os.O_RDONLY | os.O_NONBLOCK)
        gone = os.read(pipe, 1) == b""
    except BlockingIOError:
        gone = False
    except OSError:
        gone = True
    if not gone:
        hung_up = select.poll()
        hung_up.register(pipe, 0)
        while not hung_up.poll():
            continue
    os.killpg(os.getpgid(0), signal.SIGKILL)


if __name__ == "__main__":
    main()
