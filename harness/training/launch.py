"""The parent's side of a training in several processes on one machine: starts them, hears them and ends them.

The job is plain files: the run's recipe.json, and workers/job.json beside it. Each process writes how it ended to
workers/outcome-<rank>.json; the first that failed is the run's error, and the others are ended. torchrun is not used
on purpose: it tells an error by its own report, waits half a minute before it ends the others, and turns every exit
code into 1.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, Literal

import torch

from harness.common.errors import DataError, EnvironmentProblem, HarnessError, Preempted, RecipeError, StaleError
from harness.common.files import write_json
from harness.common.signals import stop_requests

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from harness.config.recipe import Recipe

Task = Literal["reference", "train"]
Process = subprocess.Popen[bytes]

FOLDER: Final = "workers"
JOB: Final = "job.json"
_POLL: Final = 0.1
"""Seconds between two looks at the processes."""
_SETTLE: Final = 2.0
"""Seconds in which the others may still say what happened to them, once one has failed."""
_FAREWELL: Final = 60.0
"""Seconds in which the others may finish what they write, once one has stopped as it was asked to."""
_TAIL: Final = 20
"""Lines of a process's log that an error shows, where the process itself said nothing."""
_FAMILY: Final = (RecipeError, EnvironmentProblem, DataError, StaleError, Preempted)
_FOREIGN: Final = ("ACCELERATE_", "FSDP_", "TORCHELASTIC_", "MASTER_")
"""Environment variables that would change what a worker does."""


def run_workers(recipe: Recipe, run_dir: Path, task: Task, processes: int) -> None:
    """Do one task of a prepared run in so many processes, and return when all have done it.

    A request to stop is passed on to each; a second Ctrl-C ends them at once. They end with this call, however it is
    left, and by themselves when this process dies: their stdin closes then.

    Raises:
        HarnessError: what the first process that failed said, of the same kind.
        Preempted: they stopped after a checkpoint.
    """
    folder = run_dir / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    meeting = folder / f"meeting-{os.getpid()}"
    job = {"schema": 1, "task": task, "world": processes, "meeting": str(meeting), "began": time.perf_counter()}
    write_json(folder / JOB, job)
    threads = recipe.devices.threads or max(1, torch.get_num_threads() // processes)
    # The handlers stand before the processes start and until the last has ended: no request is lost in between.
    with stop_requests() as stopping, ExitStack() as stack:
        started = [stack.enter_context(_started(run_dir, rank, processes, threads)) for rank in range(processes)]
        told, first = False, []
        while any(process.poll() is None for process in started):
            first = [rank for rank, process in enumerate(started) if process.poll()]
            if first:
                _let_settle(started)
                break
            if stopping() and not told:
                told = True
                for process in started:
                    process.terminate()
            time.sleep(_POLL)
        codes = [process.poll() for process in started]
    if any(codes):
        raise _failure(folder, codes, first, told=told)


@contextmanager
def _started(run_dir: Path, rank: int, world: int, threads: int) -> Iterator[Process]:
    """A worker in a session of its own, so that a terminal's Ctrl-C reaches this process alone."""
    with ExitStack() as stack:
        # The first one shows the progress; what the others print is kept beside it.
        log = None if rank == 0 else stack.enter_context((run_dir / FOLDER / f"log-{rank}.txt").open("wb"))
        process = subprocess.Popen(
            [sys.executable, "-m", "harness.training.worker", str(run_dir), str(rank)],
            stdin=subprocess.PIPE,
            stdout=sys.stderr if log is None else log,
            stderr=None if log is None else log,
            env=_environment(rank, world, threads),
            start_new_session=True,
        )
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):  # also those that load data for it
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if process.stdin is not None:
                process.stdin.close()


def _environment(rank: int, world: int, threads: int) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),  # noqa: PTH109 - the same packages
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
    }


def _let_settle(started: list[Process]) -> None:
    """Wait a little after the first exit that is not 0, for the others to end or to say what they saw."""
    stopped = any(process.poll() == Preempted.exit_code for process in started)
    until = time.monotonic() + (_FAREWELL if stopped else _SETTLE)
    while time.monotonic() < until:
        if all(process.poll() is not None for process in started):
            return
        time.sleep(_POLL)


def _failure(folder: Path, codes: list[int | None], first: list[int], *, told: bool) -> HarnessError:
    """The one error of several processes: of the one that failed first, which the others only felt.

    Args:
        first: those that had failed when a failure was first seen; empty if all ended at once.
    """
    outcomes = {rank: _outcome(folder, rank) for rank in range(len(codes))}
    if told and all(found is None or found["code"] == Preempted.exit_code for found in outcomes.values()):
        said = next((found["message"] for found in outcomes.values() if found), "stopped before the first step")
        return Preempted(said)
    suspects = first or [rank for rank, code in enumerate(codes) if code]
    killed = [rank for rank in suspects if outcomes[rank] is None]
    words = [found for rank, found in outcomes.items() if found is not None and rank in suspects]
    if killed and (not words or codes[killed[0]] == -signal.SIGKILL):
        return _silent(folder, killed[0], codes[killed[0]])
    earliest = min(words, key=lambda found: float(found["time"]))
    kind = next((kind for kind in _FAMILY if kind.exit_code == earliest["code"]), HarnessError)
    return kind(str(earliest["message"]))


def _outcome(folder: Path, rank: int) -> dict[str, Any] | None:
    path = folder / f"outcome-{rank}.json"
    if not path.exists():
        return None
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def _silent(folder: Path, rank: int, code: int | None) -> HarnessError:
    """A process that ended without a word: killed, or torn down by a library."""
    how = f"exit {code}"
    if code is not None and code < 0:
        how = f"killed by {signal.Signals(-code).name}"
    message = f"training process {rank} ended early ({how}); the others were ended too"
    log = folder / f"log-{rank}.txt"
    # What is killed has no last words; what stands there then is of its own children, who found it gone.
    if log.exists() and code != -signal.SIGKILL:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-_TAIL:]
        message += "".join([f"\nThe end of {log}:", *(f"\n  {line}" for line in lines)]) if lines else ""
    hint = "the same command resumes from the newest checkpoint"
    if code == -signal.SIGKILL:
        hint += "; the system kills a process like this when memory runs out"
    return HarnessError(message, hint=hint)
