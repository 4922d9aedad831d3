"""What the README's main job costs: CPU seconds of its whole process tree, by kind of process and by stage.

    python benchmarks/main_job.py [--recipes tiny_baseline tiny_regate] [key=value ...] > main_job.json

`harness run` is started in a folder of its own, so everything is made anew: clips, weights, runs, results. CPU
seconds are the kernel's own account of every process that has ended, orphans included, which this process adopts;
wall seconds depend on what else the machine does. Which process used them, and in which stage the command itself
did, is sampled twice a second, and told to about that precision; a stage is what the ledgers of the runs say it was.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_SAMPLE_S = 0.5
_ADOPT_ORPHANS = 36
"""PR_SET_CHILD_SUBREAPER of Linux."""
_KINDS = {
    "harness.evaluation.lmms.child": "evaluation",
    "harness.records.tracking": "mirror",
}
"""What stands in the command line of a process -> what it does; the first process is the command, and what it forks
are its helpers."""


@dataclass
class Watched:
    """The processes below this one, as sampled.

    Attributes:
        seconds: process id -> its last reading of CPU seconds.
        kinds: process id -> what it does.
        command: (UTC seconds, CPU seconds) of the command's own process, in order.
    """

    seconds: dict[int, float] = field(default_factory=dict)
    kinds: dict[int, str] = field(default_factory=dict)
    command: list[tuple[float, float]] = field(default_factory=list)

    def sample(self, first: int) -> None:
        ticks = os.sysconf("SC_CLK_TCK")
        parents, used = {}, {}
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit():
                continue
            try:
                values = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it has ended
            parents[int(folder.name)] = int(values[1])
            used[int(folder.name)] = (int(values[11]) + int(values[12])) / ticks
        for process in parents:
            above, line = process, []
            while above in parents and above != os.getpid():
                line.append(above)
                above = parents[above]
            if above != os.getpid():
                continue
            self.seconds[process] = used[process]
            if process == first:
                self.command.append((time.time(), used[process]))
            self.kinds[process] = _kind(process, first, self.kinds)

    def by_kind(self) -> dict[str, dict[str, float]]:
        answer: dict[str, dict[str, float]] = {}
        for process, kind in self.kinds.items():
            entry = answer.setdefault(kind, {"processes": 0, "cpu_s": 0.0})
            entry["processes"] += 1
            entry["cpu_s"] = round(entry["cpu_s"] + self.seconds[process], 2)
        return answer

    def between(self, began: float, ended: float) -> float:
        """CPU seconds of the command between two moments."""
        return self._at(ended) - self._at(began)

    def _at(self, moment: float) -> float:
        before = [pair for pair in self.command if pair[0] <= moment]
        after = [pair for pair in self.command if pair[0] > moment]
        if not before or not after:
            return (before[-1] if before else after[0])[1]
        (t0, c0), (t1, c1) = before[-1], after[0]
        return c0 + (c1 - c0) * (moment - t0) / (t1 - t0)


def _kind(process: int, first: int, known: dict[int, str]) -> str:
    if process == first:
        return "command"
    try:
        line = Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        line = ""
    if not line:  # it has ended
        return known.get(process, "helpers")
    return next((kind for words, kind in _KINDS.items() if words in line), "helpers")


def stages(runs: Path, watched: Watched) -> list[dict[str, Any]]:
    """What the ledgers of the runs call stages, with the command's CPU seconds in each."""
    answer = []
    for ledger in sorted(runs.glob("*/ledger.jsonl"), key=lambda path: path.stat().st_mtime):
        name, began = json.loads((ledger.parent / "recipe.json").read_text())["name"], 0.0
        for event in map(json.loads, ledger.read_text().splitlines()):
            ended = datetime.datetime.fromisoformat(event["time"]).timestamp()
            if event["event"] == "start":
                began = ended
                continue
            if event["event"] == "stage":
                wall, stage = sum(event["seconds"].values()), event["stage"]
            elif event["event"] == "end":
                wall, stage = ended - began, "train"
            else:
                continue
            cpu = watched.between(ended - wall, ended)
            answer.append({"run": name, "stage": stage, "wall_s": round(wall, 1), "command_cpu_s": round(cpu, 1)})
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=["tiny_baseline", "tiny_regate"])
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    asked = parser.parse_args()
    ctypes.CDLL(None, use_errno=True).prctl(_ADOPT_ORPHANS, 1, 0, 0, 0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = [f"paths.{key}={folder / key}" for key in ("results", "data", "weights", "stores")]
        command = [sys.executable, "-m", "harness", "run", *asked.recipes, *paths, *asked.overrides]
        began, watched = time.perf_counter(), Watched()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr)
        while process.poll() is None:
            watched.sample(process.pid)
            time.sleep(_SAMPLE_S)
        wall = time.perf_counter() - began
        _await_orphans(watched, process.pid)
        if process.returncode:
            raise SystemExit(process.returncode)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        answer = {
            "schema": 1,
            "recipes": asked.recipes,
            "overrides": asked.overrides,
            "cpu": _cpu(),
            "cores": len(os.sched_getaffinity(0)),
            "threads": os.environ.get("OMP_NUM_THREADS"),
            "load_average": os.getloadavg(),
            "cpu_s": round(used.ru_utime + used.ru_stime, 1),
            "wall_s": round(wall, 1),
            "processes": watched.by_kind(),
            "stages": stages(folder / "results" / "runs", watched),
        }
    print(json.dumps(answer, indent=1))


def _await_orphans(watched: Watched, first: int) -> None:
    while True:
        watched.sample(first)
        try:
            ended, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not ended:
            time.sleep(_SAMPLE_S)


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


if __name__ == "__main__":
    main()
