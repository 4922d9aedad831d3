"""The processes of a training: this one, or several of torch's elastic agent (`harness.training.agent`), or those
that torchrun started; and which of their endings is the run's error.
"""

from __future__ import annotations

import re
import shutil
import signal
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final, Literal

from harness.common.errors import DataError, EnvironmentProblem, HarnessError, Preempted, RecipeError, StaleError
from harness.common.files import write_json
from harness.common.progress import Progress
from harness.common.signals import stop_requests
from harness.records.run_folder import lock_run, run_dir_of
from harness.training import agent, loop, processes
from harness.training.agent import FOLDER, JOB
from harness.training.gate_stores import make_gate, open_reference
from harness.training.run import join
from regate import process

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import regate
    from harness.config.recipe import Recipe
    from harness.training.run import Prepared

Task = Literal["reference", "train"]

_LOG_LINES: Final = 20
"""Last lines of a process's log that an error shows, where the process itself wrote no outcome."""
_SAME_TIME_S: Final = 1.0
"""Endings within this of the first one may be its cause; the agent's clock counts whole seconds."""
_TIMED_OUT: Final = re.compile(r"[Tt]imed out waiting|collective operation timeout|Watchdog caught")
"""What gloo and NCCL say where another process did not come."""
_FAMILY: Final = (RecipeError, EnvironmentProblem, DataError, StaleError, Preempted)


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
    processes.init_process_group(recipe.devices.timeout_minutes)
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

    A request to stop is passed on to each; a second Ctrl-C ends them at once.

    Raises:
        HarnessError: what the first process that failed reported, of the same kind.
        Preempted: they stopped after a checkpoint.
    """
    folder = run_dir / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_json(folder / JOB, {"schema": 1, "task": task, "began": time.perf_counter()})
    group = agent.Group(0, 1, "127.0.0.1", agent.free_port(), world, recipe.devices.threads)
    # The handlers stand before the processes start and until the last has ended: no request is lost in between.
    with stop_requests() as stopping:
        failures = agent.run(run_dir, group, stopping)
        stopped = stopping()
    if failures:
        first = min(when for _, when in failures.values())
        codes = [failures[rank][0] if rank in failures else 0 for rank in range(world)]
        first_failed = [rank for rank, (_, when) in failures.items() if when <= first + _SAME_TIME_S]
        raise _failure(folder, codes, first_failed, stopped=stopped)


def _failure(folder: Path, codes: Sequence[int | None], first_failed: list[int], *, stopped: bool) -> HarnessError:
    """The one error of several processes: of the one that failed first, whose failure the others only felt.

    Args:
        codes: exit codes by rank; None of a process that was still running, negative of one that was killed.
        first_failed: those that had failed when a failure was first seen; empty if all ended at once.
        stopped: the processes were asked to stop.
    """
    outcomes = {rank: agent.read_outcome(folder, rank) for rank in range(len(codes))}
    if stopped and all(outcome is None or outcome["code"] == Preempted.exit_code for outcome in outcomes.values()):
        messages = (outcome["message"] for outcome in outcomes.values() if outcome)
        return Preempted(next(messages, "stopped before the first step"))
    suspects = first_failed or [rank for rank, code in enumerate(codes) if code]
    silent = [rank for rank in suspects if outcomes[rank] is None]
    failures = [outcome for rank, outcome in outcomes.items() if outcome is not None and rank in suspects]
    if silent and (not failures or codes[silent[0]] == -signal.SIGKILL):
        return _silent_failure(folder, silent[0], codes[silent[0]])
    earliest = min(failures, key=lambda outcome: float(outcome["time"]))
    absent = [rank for rank, outcome in outcomes.items() if outcome is None]
    if absent and _TIMED_OUT.search(earliest["message"]):
        return _stuck(next(rank for rank, outcome in outcomes.items() if outcome is earliest), absent)
    kind = next((kind for kind in _FAMILY if kind.exit_code == earliest["code"]), HarnessError)
    return kind(str(earliest["message"]))


def _stuck(waiting: int, ranks: list[int]) -> HarnessError:
    """Of processes that the others waited for in vain."""
    names = ", ".join(map(str, ranks))
    return HarnessError(
        f"training process {names} did not answer: process {waiting} waited devices.timeout_minutes for it",
        hint="it hangs: its log is beside those of the others, and a GPU that hangs says so in the system's log; the "
        "same command resumes from the newest checkpoint",
    )


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
