"""A disk that fills at a moment of a run: a real one, a tmpfs of some mebibytes in a mount namespace of its own.

`in_a_small_disk` starts this file there. It does the run up to the moment, fills the disk to the last byte, and says
how the run ended; then it takes the filling away and gives the run's command again.
"""

from __future__ import annotations

import errno
import importlib
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT: Final = Path(__file__).parents[2]
MOST_S: Final = 60.0
MOMENTS: Final = {
    "data": ("harness.pipeline", "make_data"),
    "stores": ("regate.reference", "make_array"),
    "reference pass": ("harness.training.stores.gate_stores", "create_reference"),
    "reference losses": ("regate", "score_reference"),
    "running losses": ("regate.difficulty", "make_array"),
    "an epoch's end": ("regate.difficulty", "DifficultyStore._fold_journals"),
    "step": ("harness.training.loop", "send_report"),
    "journal": ("regate.journal", "pack"),
    "checkpoint": ("harness.training.checkpoint", "save"),
    "a checkpoint's tensors": ("harness.training.placement.trained_state", "save"),
    "a checkpoint's digests": ("harness.training.checkpoint", "sync_tree"),
    "kept model": ("harness.training.loop", "atomic_folder"),
    "digests of a model": ("harness.training.loop", "seal_model"),
    "an evaluation": ("harness.evaluation.evaluate", "_evaluate"),
    "a second evaluation": ("harness.evaluation.evaluate", "read_result"),
    "record": ("harness.pipeline", "build_record"),
    "tables": ("harness.pipeline", "tables.write_tables"),
    "figures": ("harness.pipeline", "figures.build_figures"),
    "report": ("harness.pipeline", "write_report"),
}
"""What is called when the disk fills; the call finds it full."""
EVALUATED: Final = ("an evaluation", "a second evaluation")
"""Moments of a run that is evaluated."""


def run_of(moment: str) -> tuple[Callable[[Path], None], Callable[[Path], dict[str, Any]]]:
    """The command of the run that comes to a moment, and what it comes to."""
    from tests.soak import evaluated, stopped

    return (evaluated.go_on, evaluated.outcome) if moment in EVALUATED else (stopped.go_on_to_tables, stopped.outcome)


def possible() -> bool:
    """Whether this machine lets a process mount a tmpfs in a namespace of its own."""
    command = ["unshare", "--user", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def in_a_small_disk(folder: Path, moment: str, made: Path, megabytes: int = 64) -> dict[str, Any]:
    """What came of a run on a disk of that size that fills at a moment: see `main`.

    Args:
        made: folder of the same run whose data and weights are there, to start from.
    """
    folder.mkdir()
    mount = f'mount -t tmpfs -o size={megabytes}m tmpfs "$0" && exec "$@"'
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, str(folder), sys.executable]
    command += ["-m", "tests.soak.full_disk", str(folder), moment, str(made)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{moment}: exit {done.returncode}: {done.stderr[-3000:]}"
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def fill(folder: Path) -> None:
    """Take what is free, to the last byte, with every inode's block."""
    with (folder / "filling").open("ab", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise


def fill_at(moment: str, folder: Path) -> list[float]:
    """Have the disk filled at the first call of what the moment names; the times at which it was."""
    module, path = MOMENTS[moment]
    owner: Any = importlib.import_module(module)
    *above, name = path.split(".")
    for part in above:
        owner = getattr(owner, part)
    function, times = getattr(owner, name), []

    def filled(*arguments: Any, **settings: Any) -> Any:
        if not times:
            fill(folder)
            times.append(time.monotonic())
        return function(*arguments, **settings)

    setattr(owner, name, filled)
    return times


def _first_attempt(folder: Path, moment: str) -> tuple[str, int, float | None]:
    """The message and exit code of a run whose disk fills, and the seconds from then to its end."""
    from harness.common.exits import explained

    times = fill_at(moment, folder)
    message, code = "", 0
    try:
        run_of(moment)[0](folder)
    except Exception as error:  # noqa: BLE001 - whatever comes is judged
        message, code = explained(error)
    return message, code, time.monotonic() - times[0] if times else None


def main(folder: Path, moment: str, made: Path) -> dict[str, Any]:
    """Run until the disk is full and has ended the run; free it; run to the end.

    Returns:
        code, message: of the run's end on the full disk; seconds: from one to the other, None where the disk never
        filled; left: names of files that only a later start could remove; outcome: what the second attempt came to.
    """
    from harness.records import run_folder
    from tests.soak.forks import in_a_fork

    run_folder._SPARE_BYTES = 0  # the disk fills later: what a start asks for has its own tests
    for name in () if moment == "data" else ("data", "weights"):
        shutil.copytree(made / name, folder / name)
    ended, status = in_a_fork(lambda: _first_attempt(folder, moment))
    message, code, took = ended or (f"wait status {status}", -1, None)
    left = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.tmp"))
    (folder / "filling").unlink(missing_ok=True)
    go_on, outcome = run_of(moment)
    go_on(folder)
    return {"code": code, "message": message, "seconds": took, "left": left, "outcome": outcome(folder)}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))) + "\n")
