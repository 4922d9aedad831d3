"""The parent's side of the child process: starts it, reads its events, and ends it. Does not import lmms-eval."""

from __future__ import annotations

import glob
import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from harness.common.errors import DataError, EnvironmentProblem, HarnessError, RecipeError, StaleError
from harness.common.files import is_alive, write_json
from harness.common.threads import settle

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

CHILD: Final = (sys.executable, "-m", "harness.evaluation.lmms.child")
LOG: Final = "lmms_eval.log"
_TAIL: Final = 20
"""Lines of the child's log that an error shows."""
_EXIT_GRACE_S: Final = 30.0
"""Seconds that a child may take to exit after its last event."""
_EVENTS: Final[Mapping[Any, Mapping[str, type]]] = {
    "progress": {"result": int, "done": int},
    "done": {"result": int, "done": int},
    "say": {"message": str},
    "error": {"message": str, "exit_code": int},
    "end": {},
}
"""The events of a child, and the fields of each."""
_PASSED_ON: Final = (
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "TMPDIR", "TZ", "LANG", "LC_", "TERM", "LD_", "VIRTUAL_ENV"),
    *("PYTHON", "OMP_", "MKL_", "KMP_", "OPENBLAS_", "GOMP_", "NUMEXPR_", "CUDA_", "NVIDIA_", "CUBLAS_", "NCCL_"),
    *("TORCH", "PYTORCH_", "TRITON_", "XDG_CACHE_HOME", "REGATE_"),
)
"""Beginnings of the environment variables that the child gets: where things are and how to compute. Keys of services,
and what would make it another process than one that is offline with its own caches, stay here."""


def visible_gpus(processes: int | None) -> list[str | None]:
    """Of each answering process its GPU as CUDA_VISIBLE_DEVICES names it, None where there is none to choose.

    Args:
        processes: `devices.processes` of a recipe.

    Raises:
        EnvironmentProblem: more processes are asked for than there are GPUs.
    """
    import torch

    count = torch.cuda.device_count()
    wanted = processes or max(1, count)
    if count and wanted > count:
        raise EnvironmentProblem(
            f"devices.processes is {wanted}, and {count} GPUs are visible: each process needs its own",
            hint="leave devices.processes out to use every visible GPU",
        )
    if not count:
        return [None] * wanted
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = [name.strip() for name in visible.split(",") if name.strip()] or [str(i) for i in range(count)]
    return list(names[:wanted])


@contextmanager
def run_child(
    command: Sequence[str], folder: Path, job: Mapping[str, Any], *, log_name: str = LOG, gpu: str | None = None
) -> Iterator[Iterator[dict[str, Any]]]:
    """The events of a child that works on `job`; what it prints is appended to a log in `folder`.

    The child ends with this block, however it is left, and by itself when this process dies: its stdin closes then.
    Iterating the events raises the child's error:

    Args:
        gpu: the one that it sees, as CUDA_VISIBLE_DEVICES names it; None for all that this process sees.

    Raises:
        HarnessError: of the kind the child says, with the end of its log where it is a failure of unknown kind.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    log = folder / log_name
    work = Path(tempfile.mkdtemp(prefix=f"{_work()}{os.getpid()}-", dir=folder)).absolute()
    try:
        job_file = work / "job.json"
        write_json(job_file, {**job, "work": str(work)}, sealed=True)
        before = log.stat().st_size if log.exists() else 0
        environment = _environment(work) | ({} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu})
        with log.open("ab") as output, _started([*command, str(job_file)], output, environment) as (process, stream):
            yield _events(process, stream, log, before)
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def _started(
    command: Sequence[str], output: IO[bytes], environment: Mapping[str, str]
) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes]]]:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as stream:
        try:
            process = subprocess.Popen(
                [*command, str(writing)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=(writing,),
                env=environment,
                start_new_session=True,
            )
        finally:
            os.close(writing)
        try:
            yield process, stream
        finally:
            process.kill()
            process.wait()
            if process.stdin is not None:
                process.stdin.close()


def _environment(work: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name.startswith(_PASSED_ON)}
    home = work / "huggingface"
    settle(kept)
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),  # noqa: PTH109 - the same packages
        "HF_HOME": str(home),
        "HF_DATASETS_CACHE": str(home / "datasets"),
        "LMMS_EVAL_DATASETS_CACHE": str(home / "datasets"),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def _events(
    process: subprocess.Popen[bytes], stream: Iterable[bytes], log: Path, before: int
) -> Iterator[dict[str, Any]]:
    for line in stream:
        event = _parse(line)
        if event is None:
            break  # the half line of a killed child
        if not _is_event(event):
            text = line.decode(errors="replace").strip()[:200]
            message = f"its process sent something that is no event: {text}"
            raise _error({"message": message, "hint": None, "exit_code": 1}, log, before)
        if event["event"] == "end":
            return
        if event["event"] == "error":
            with suppress(subprocess.TimeoutExpired):  # its traceback is still on the way to the log
                process.wait(_EXIT_GRACE_S)
            raise _error(event, log, before)
        yield event
    with suppress(subprocess.TimeoutExpired):
        process.wait(_EXIT_GRACE_S)
    message = f"its process ended early (exit {process.returncode})"
    raise _error({"message": message, "hint": None, "exit_code": 1}, log, before)


def _parse(line: bytes) -> Any | None:
    """The value of a whole line; None for a line without its end."""
    if not line.endswith(b"\n"):
        return None
    try:
        return json.loads(line)
    except ValueError:
        return line.decode(errors="replace")


def _is_event(event: Any) -> bool:
    """Whether it is an event with the fields of its kind."""
    if not isinstance(event, dict):
        return False
    fields = _EVENTS.get(event.get("event"))
    return fields is not None and all(isinstance(event.get(name), kind) for name, kind in fields.items())


def _error(failure: Mapping[str, Any], log: Path, before: int) -> HarnessError:
    """The child's error as one of ours, by its exit code; the log's end where it is none of ours."""
    family = (RecipeError, EnvironmentProblem, DataError, StaleError)
    kind = next((kind for kind in family if kind.exit_code == failure["exit_code"]), HarnessError)
    message = f"evaluation failed: {failure['message']}"
    if kind is HarnessError:
        with log.open("rb") as file:
            file.seek(before)
            lines = file.read().decode(errors="replace").replace("\r", "\n").splitlines()
        tail = [line for line in lines if line.strip()][-_TAIL:]
        message += f"\nThe end of {log}:\n" + "\n".join(f"  {line}" for line in tail)
    return kind(message, hint=failure["hint"])


def _sweep(folder: Path) -> None:
    """Remove what killed evaluations of this machine left behind."""
    for work in folder.glob(f"{glob.escape(_work())}*"):
        owner = int(work.name.removeprefix(_work()).split("-")[0])
        if not is_alive(owner):
            shutil.rmtree(work, ignore_errors=True)


def _work() -> str:
    """Begins the names of this machine's folders: another one may evaluate beside it, with processes unseen here."""
    return f".work-{os.uname().nodename}-"
