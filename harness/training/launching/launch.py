"""The processes of a training: this one, or several of torch's elastic agent (`harness.training.launching.agent`), on
this node and on others (`harness.training.launching.nodes`); which of their endings is the run's error, and whether
they are started again.
"""

from __future__ import annotations

import re
import shutil
import signal
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from harness.common.errors import HarnessError, Preempted
from harness.common.files import write_json
from harness.common.signals import stop_requests
from harness.records.ledger import Ledger, read_steps
from harness.training import loop
from harness.training.launching import agent, processes
from harness.training.launching.agent import FOLDER, JOB
from harness.training.launching.nodes import FAMILY, compute
from harness.training.stores.gate_stores import make_gate, open_reference, spread_reference

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import regate
    from harness.training.run import Prepared

Task = Literal["reference", "train"]

_LOG_LINES: Final = 20
"""Last lines of a process's log that an error shows, where the process itself wrote no outcome."""
_SAME_TIME_S: Final = 1.0
"""Endings within this of the first one may be its cause; the agent's clock counts whole seconds."""
_TIMED_OUT: Final = re.compile(r"[Tt]imed out waiting|collective operation timeout|Watchdog caught")
"""What gloo and NCCL say where another process did not come."""
_CLOSED: Final = re.compile(
    r"[Cc]onnection (was )?(closed|reset)|[Bb]roken pipe|ncclRemoteError|remote process exited"
)
"""What gloo, NCCL and torch's store say where another process has ended."""
_BROKEN: Final = re.compile(
    r"CUDA error: (?!device-side assert|out of memory|invalid)|uncorrectable ECC|NCCL error|ncclUnhandledCudaError|"
    r"ncclSystemError|ncclRemoteError|ncclInternalError|Watchdog caught|[Tt]imed out waiting|"
    r"collective operation timeout"
)
"""What CUDA, NCCL and gloo say of a GPU or a network that failed; a program's own mistakes are none."""
_KILLED: Final = frozenset(-number for number in (signal.SIGABRT, signal.SIGBUS, signal.SIGKILL, signal.SIGSEGV))
"""Exit codes of processes that a machine or a library ended."""
_PAUSES_S: Final = (10.0, 60.0, 300.0)
"""Seconds before the first, the second and each further restart."""


# --- the training on its processes -----------------------------------------------------------------------


def train(run: Prepared, store: regate.ReferenceStore | None) -> None:
    """Fine-tune, in as many processes of each node as the recipe says. A finished training is left alone.

    Args:
        store: the reference losses; None where the gate reads none.
    """
    job = _train_job(run, store)
    each = processes.count(run.recipe, run.nodes)
    if job.finished or (each * run.nodes == 1 and not run.recipe.devices.restarts):
        loop.train(job)
        return
    _count_targets(run)
    run_workers(run, "train", each, lambda: _last_step(run))


def train_here(run: Prepared, *, began: float | None = None) -> None:
    """This process's part of the training, on one of several; the reference losses are complete.

    Args:
        began: see `TrainJob.began`.
    """
    loop.train(_train_job(run, open_reference(run), began=began))


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
        mirrors=run.mirrors,
        began=began,
    )


def _count_targets(run: Prepared) -> None:
    """Count the targets in one process, so that several find the index."""
    gate = run.recipe.gate
    if gate is not None and gate.needs_difficulty:
        _ = run.index


def _last_step(run: Prepared) -> int:
    """The newest step that the ledger holds; -1 where none is done."""
    steps = read_steps(run.run_dir / "ledger.jsonl")
    return int(steps[-1]["step"]) if steps else -1


# --- processes started here, and on the other nodes -------------------------------------------------------


def run_workers(run: Prepared, task: Task, each: int, reached: Callable[[], int]) -> None:
    """Do one task of a prepared run in `each` processes of every node, and return when all have done it.

    A request to stop is passed on to each; a second Ctrl-C ends them at once. Where a process was killed, or a GPU or
    the network failed, they are started again as `devices.restarts` allows.

    Args:
        reached: how far the task is, as a number that grows.

    Raises:
        HarnessError: what the first process that failed reported, of the same kind.
        Preempted: they stopped after a checkpoint.
    """
    restarts = Restarts(run.recipe.devices.restarts, reached())
    while True:
        try:
            _attempt(run, task, each)
            return
        except MachineFailure as failure:
            pause = restarts.pause(reached())
            if pause is None:
                raise
            line = str(failure).splitlines()[0]
            times = f"{restarts.count} of {restarts.allowed}"
            run.progress.say(f"{line}\n  starting again in {pause:.0f} s (devices.restarts: {times})")
            with Ledger(run.run_dir / "ledger.jsonl") as ledger:
                ledger.append("restart", task=task, why=line, reached=restarts.reached)
            time.sleep(pause)


def _attempt(run: Prepared, task: Task, each: int) -> None:
    folder, others = run.run_dir / FOLDER, run.others
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    attempt = uuid.uuid4().hex
    job = {"schema": 1, "task": task, "began": time.perf_counter(), "attempt": attempt}
    write_json(folder / JOB, job, sealed=True)
    if others is not None and task == "reference":
        spread_reference(run, run.nodes)
    address = "127.0.0.1" if others is None else others.address
    group = agent.Group(0, run.nodes, address, agent.free_port(), each, run.recipe.devices.threads)
    order = None if others is None else others.begin(compute(run.run_dir, attempt, group))
    # The handlers stand before the processes start and until the last has ended: no request is lost in between.
    with stop_requests() as stopping:

        def stop() -> bool:
            asked = stopping() or (order is not None and order.stops())
            if asked and order is not None:
                order.tell_stop()
            return asked

        failures = agent.run(run.run_dir, group, stop, lambda: order is not None and order.failed())
        stopped = stop()
        outcomes = {rank: agent.read_outcome(folder, rank) for rank in group.ranks}
        if order is not None:
            failed = any(code != Preempted.exit_code for code, _ in failures.values())
            elsewhere = order.end_compute(stopped=stopped or bool(failures), failed=failed)
            failures |= elsewhere.failures
            outcomes |= elsewhere.outcomes
            stopped = stopped or elsewhere.stopped
    if failures:
        codes = [failures[rank][0] if rank in failures else 0 for rank in range(each * run.nodes)]
        raise _failure(folder, codes, _first_failed(failures, each), outcomes, each=each, stopped=stopped)
    if others is not None and stopped:
        raise Preempted("stopped when all was done")


def _first_failed(failures: Mapping[int, tuple[int, float]], each: int) -> list[int]:
    """The ranks that had failed when a failure was first seen on their node, by exit code and time of all failures.
    Clocks of two nodes are not compared.

    Args:
        each: processes of a node.
    """
    first: dict[int, float] = {}
    for rank, (_, when) in failures.items():
        first[rank // each] = min(when, first.get(rank // each, when))
    return [rank for rank, (_, when) in failures.items() if when <= first[rank // each] + _SAME_TIME_S]


class MachineFailure(HarnessError):
    """A process was killed, or its GPU or network failed: another attempt may do better."""


@dataclass(slots=True)
class Restarts:
    """How often, and after what a time, a failed attempt is made again.

    Attributes:
        allowed: `devices.restarts`.
        reached: how far the run was at the last start.
        count: restarts so far.
    """

    allowed: int
    reached: int
    count: int = 0

    def pause(self, reached: int) -> float | None:
        """Seconds until the next attempt; None where there is none: all are used up, or the last one came no further
        than the one before."""
        if self.count >= self.allowed or reached <= self.reached:
            return None
        self.reached, self.count = reached, self.count + 1
        return _PAUSES_S[min(self.count, len(_PAUSES_S)) - 1]


def _failure(
    folder: Path,
    codes: Sequence[int | None],
    first_failed: list[int],
    outcomes: Mapping[int, dict[str, Any] | None],
    *,
    each: int,
    stopped: bool,
) -> HarnessError:
    """The one error of several processes: of the one that failed first, whose failure the others only felt. Where
    processes of several nodes failed, what they say tells which of them felt it, since their clocks may differ.

    Args:
        codes: exit codes by rank; None of a process that was still running, negative of one that was killed.
        first_failed: those that had failed when a failure was first seen on their node; empty if all ended at once.
        outcomes: what each says of its end, by rank; None where it could not say it.
        each: processes of a node.
        stopped: the processes were asked to stop.
    """
    if stopped and all(outcome is None or outcome["code"] == Preempted.exit_code for outcome in outcomes.values()):
        messages = (outcome["message"] for outcome in outcomes.values() if outcome)
        return Preempted(next(messages, "stopped before the first step"))
    suspects = first_failed or [rank for rank, code in enumerate(codes) if code]
    silent = [rank for rank in suspects if outcomes[rank] is None]
    failures = {rank: outcome for rank in suspects if (outcome := outcomes[rank]) is not None}
    if silent and (not failures or codes[silent[0]] == -signal.SIGKILL):
        return _silent_failure(folder, silent[0], codes[silent[0]])

    def place(rank: int) -> tuple[int, int, float]:
        return _felt(failures[rank]["message"]), rank // each, float(failures[rank]["time"])

    first = min(failures, key=place)
    earliest = failures[first]
    absent = [rank for rank, outcome in outcomes.items() if outcome is None]
    if absent and _TIMED_OUT.search(earliest["message"]):
        return _stuck(first, absent)
    message = str(earliest["message"])
    unknown = MachineFailure if _BROKEN.search(message) else HarnessError
    kind = next((kind for kind in FAMILY if kind.exit_code == earliest["code"]), unknown)
    return kind(message)


def _felt(message: str) -> int:
    """How surely an error is the failure of another process: 0 where it is a process's own."""
    if _TIMED_OUT.search(message):
        return 1
    return 2 if _CLOSED.search(message) else 0


def _stuck(waiting: int, ranks: list[int]) -> HarnessError:
    """Of processes that the others waited for in vain."""
    names = ", ".join(map(str, ranks))
    return MachineFailure(
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
    return (MachineFailure if code in _KILLED else HarnessError)(message, hint=hint)
