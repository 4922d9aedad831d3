"""The processes of a training: this one, several that are started here on one machine, or those of torchrun.

The job of the started ones is plain files: the run's recipe.json, and workers/job.json beside it. Each process writes
how it ended to workers/outcome-<rank>.json; the first that failed is the run's error, and the others are ended.
torchrun is not used for it on purpose: it reports an error in its own format, waits half a minute before it ends the
others, and turns every exit code into 1.
"""

from __future__ import annotations

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
from harness.common.files import read_json, write_json
from harness.common.progress import Progress
from harness.common.signals import stop_requests
from harness.common.threads import settle
from harness.records.run_folder import lock_run, run_dir_of
from harness.training import loop, processes
from harness.training.gate_stores import make_gate, open_reference
from harness.training.processes import FOLDER, JOB
from harness.training.run import join
from regate import process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import regate
    from harness.config.recipe import Recipe
    from harness.training.run import Prepared

Task = Literal["reference", "train"]
Worker = subprocess.Popen[bytes]

_POLL_S: Final = 0.1
"""Seconds between two looks at the processes."""
_FAILURE_GRACE_S: Final = 2.0
"""Seconds in which the others may still say what happened to them, once one has failed."""
_SHUTDOWN_GRACE_S: Final = 60.0
"""Seconds in which the others may finish what they write, once one has stopped as it was asked to."""
_LOG_LINES: Final = 20
"""Last lines of a process's log that an error shows, where the process itself wrote no outcome."""
_FAMILY: Final = (RecipeError, EnvironmentProblem, DataError, StaleError, Preempted)
_FOREIGN: Final = ("ACCELERATE_", "FSDP_", "TORCHELASTIC_", "MASTER_")
"""Environment variables that would change what a worker does."""


# --- the training on its processes -----------------------------------------------------------------------


def train(run: Prepared, store: regate.ReferenceStore | None) -> None:
    """Fine-tune, in as many processes of this machine as the recipe says. A finished training is left alone.

    Args:
        store: the reference losses; None where the gate reads none.
    """
    job = _train_job(run, store)
    count = processes.count(run.recipe)
    if count == 1 or job.finished:
        loop.train(job)
        return
    _count_targets(run)
    run_workers(run.recipe, run.run_dir, "train", count)


def train_here(run: Prepared, *, began: float | None = None) -> None:
    """This process's part of the training, on one of several; the reference losses are complete.

    Args:
        began: see `TrainJob.began`.
    """
    loop.train(_train_job(run, open_reference(run), began=began))


def train_under_torchrun(recipe: Recipe, prepare: Callable[[], Prepared]) -> Path | None:
    """The training on every process that torchrun started, on one machine or several; every one calls this.

    Args:
        prepare: makes the run ready; called on the main process alone, which holds the run's lock.

    Returns:
        The run's folder; None on all but the main process.
    """
    processes.init_process_group()
    main = process.rank() == 0
    processes.check_split(recipe, process.world())
    with ExitStack() as stack:
        if main:
            stack.enter_context(lock_run(run_dir_of(recipe)))
            run = prepare()
            open_reference(run)
            _count_targets(run)
        process.barrier()
        train_here(run if main else join(recipe, Progress(quiet=True)))
        processes.destroy_process_group()
    return run.run_dir if main else None


def _train_job(run: Prepared, store: regate.ReferenceStore | None, *, began: float | None = None) -> loop.TrainJob:
    return loop.TrainJob(
        recipe=run.recipe,
        steps=run.plan.steps,
        evaluate_at=run.plan.evaluation_steps,
        adapter=run.adapter,
        data=run.data,
        make_gate=lambda: make_gate(run, store),
        run_dir=run.run_dir,
        progress=run.progress,
        began=began,
    )


def _count_targets(run: Prepared) -> None:
    """Count the targets in one process, so that several find the index."""
    gate = run.recipe.gate
    if gate is not None and gate.needs_difficulty:
        _ = run.index


# --- processes started here ------------------------------------------------------------------------------


def run_workers(recipe: Recipe, run_dir: Path, task: Task, world: int) -> None:
    """Do one task of a prepared run in `world` processes, and return when all have done it.

    A request to stop is passed on to each; a second Ctrl-C ends them at once. They end with this call, however it is
    left, and by themselves when this process dies: their stdin closes then.

    Raises:
        HarnessError: what the first process that failed reported, of the same kind.
        Preempted: they stopped after a checkpoint.
    """
    folder = run_dir / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    rendezvous = folder / f"rendezvous-{os.getpid()}"
    job = {"schema": 1, "task": task, "world": world, "rendezvous": str(rendezvous), "began": time.perf_counter()}
    write_json(folder / JOB, job)
    threads = recipe.devices.threads or max(1, torch.get_num_threads() // world)
    # The handlers stand before the processes start and until the last has ended: no request is lost in between.
    with stop_requests() as stopping, ExitStack() as stack:
        workers = [stack.enter_context(_started(run_dir, rank, world, threads)) for rank in range(world)]
        stopped, first_failed = False, []
        while any(worker.poll() is None for worker in workers):
            first_failed = [rank for rank, worker in enumerate(workers) if worker.poll()]
            if first_failed:
                _drain(workers)
                break
            if stopping() and not stopped:
                stopped = True
                for worker in workers:
                    worker.terminate()
            time.sleep(_POLL_S)
        codes = [worker.poll() for worker in workers]
    if any(codes):
        raise _failure(folder, codes, first_failed, stopped=stopped)


@contextmanager
def _started(run_dir: Path, rank: int, world: int, threads: int) -> Iterator[Worker]:
    """A worker in a session of its own, so that a terminal's Ctrl-C reaches this process only."""
    with ExitStack() as stack:
        # The first one shows the progress; what the others print is kept beside it.
        log = None if rank == 0 else stack.enter_context((run_dir / FOLDER / f"log-{rank}.txt").open("wb"))
        worker = subprocess.Popen(
            [sys.executable, "-m", "harness.training.worker", str(run_dir), str(rank)],
            stdin=subprocess.PIPE,
            stdout=sys.stderr if log is None else log,
            stderr=None if log is None else log,
            env=_environment(rank, world, threads),
            start_new_session=True,
        )
        try:
            yield worker
        finally:
            with suppress(ProcessLookupError):  # also those that load data for it
                os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()
            if worker.stdin is not None:
                worker.stdin.close()


def _environment(rank: int, world: int, threads: int) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
    settle(kept)
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


def _drain(workers: list[Worker]) -> None:
    """Wait a little after the first exit that is not 0, for the others to end or to write what they saw."""
    stopped = any(worker.poll() == Preempted.exit_code for worker in workers)
    until = time.monotonic() + (_SHUTDOWN_GRACE_S if stopped else _FAILURE_GRACE_S)
    while time.monotonic() < until:
        if all(worker.poll() is not None for worker in workers):
            return
        time.sleep(_POLL_S)


def _failure(folder: Path, codes: list[int | None], first_failed: list[int], *, stopped: bool) -> HarnessError:
    """The one error of several processes: of the one that failed first, whose failure the others only felt.

    Args:
        codes: exit codes by rank; None of a process that was still running.
        first_failed: those that had failed when a failure was first seen; empty if all ended at once.
        stopped: the processes were asked to stop.
    """
    outcomes = {rank: _outcome(folder, rank) for rank in range(len(codes))}
    if stopped and all(outcome is None or outcome["code"] == Preempted.exit_code for outcome in outcomes.values()):
        messages = (outcome["message"] for outcome in outcomes.values() if outcome)
        return Preempted(next(messages, "stopped before the first step"))
    suspects = first_failed or [rank for rank, code in enumerate(codes) if code]
    silent = [rank for rank in suspects if outcomes[rank] is None]
    failures = [outcome for rank, outcome in outcomes.items() if outcome is not None and rank in suspects]
    if silent and (not failures or codes[silent[0]] == -signal.SIGKILL):
        return _silent_failure(folder, silent[0], codes[silent[0]])
    earliest = min(failures, key=lambda outcome: float(outcome["time"]))
    kind = next((kind for kind in _FAMILY if kind.exit_code == earliest["code"]), HarnessError)
    return kind(str(earliest["message"]))


def _outcome(folder: Path, rank: int) -> dict[str, Any] | None:
    path = folder / f"outcome-{rank}.json"
    return read_json(path, "the outcome of a worker") if path.exists() else None


def _silent_failure(folder: Path, rank: int, code: int | None) -> HarnessError:
    """Of a process that ended without an outcome: killed, or torn down by a library."""
    how = f"exit {code}"
    if code is not None and code < 0:
        how = f"killed by {signal.Signals(-code).name}"
    message = f"training process {rank} ended early ({how}); the others were ended too"
    log = folder / f"log-{rank}.txt"
    # A killed process logs nothing at its end; what stands there then is of its own children, who found it gone.
    if log.exists() and code != -signal.SIGKILL:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-_LOG_LINES:]
        message += "".join([f"\nThe end of {log}:", *(f"\n  {line}" for line in lines)]) if lines else ""
    hint = "the same command resumes from the newest checkpoint"
    if code == -signal.SIGKILL:
        hint += "; the system kills a process like this when memory runs out"
    return HarnessError(message, hint=hint)
