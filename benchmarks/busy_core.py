"""How long a training step takes beside another busy process, with spinning and with passive OpenMP barriers.

    python benchmarks/busy_core.py [--rounds 5] [--threads 2] > busy_core.json

A child process trains a decoder of the tiny model's size for some steps, with torch's threads waiting for each other
as OpenMP does by default or as `harness` has them wait (`harness.common.threads`). The two take turns, alone and
beside a process that computes without end; a busy machine slows both alike, so read the ratios. Wall and CPU seconds
of the steps alone; medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

STEPS = 40
CHILD = f"""
import time, torch
from torch import nn
torch.manual_seed(0)
layers = [nn.TransformerEncoderLayer(128, 4, 256, dropout=0.0, batch_first=True) for _ in range(3)]
model = nn.Sequential(*layers, nn.Linear(128, 285))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
inputs, targets = torch.randn(16, 52, 128), torch.randint(0, 285, (16, 52))
def step():
    loss = nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
    loss.backward(); optimizer.step(); optimizer.zero_grad()
for _ in range(5): step()
wall, cpu = time.perf_counter(), time.process_time()
for _ in range({STEPS}): step()
print(time.perf_counter() - wall, time.process_time() - cpu)
"""
POLICIES: dict[str, dict[str, str]] = {"spinning": {}, "passive": {"OMP_WAIT_POLICY": "PASSIVE"}}


def steps(policy: str, threads: int) -> tuple[float, float]:
    """Wall and CPU milliseconds of one step."""
    foreign = ("OMP_", "MKL_", "KMP_", "GOMP_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    environment = {**kept, **POLICIES[policy], "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-c", CHILD]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    wall, cpu = (1000 * float(text) / STEPS for text in done.stdout.split())
    return wall, cpu


@contextmanager
def busy(wanted: bool) -> Iterator[None]:
    """A process that computes as long as the block lasts."""
    if not wanted:
        yield
        return
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    asked = parser.parse_args()
    taken: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for _ in range(asked.rounds):
        for beside in ("alone", "beside a busy process"):
            with busy(beside != "alone"):
                for policy in POLICIES:
                    taken.setdefault((beside, policy), []).append(steps(policy, asked.threads))
    answer: dict[str, Any] = {"schema": 1, "cpu": platform.processor(), "threads": asked.threads, "steps": STEPS}
    answer["load_average"] = os.getloadavg()
    for (beside, policy), pairs in taken.items():
        wall, cpu = (round(statistics.median(values), 2) for values in zip(*pairs, strict=True))
        answer.setdefault(beside, {})[policy] = {"wall_ms": wall, "cpu_ms": cpu}
    print(json.dumps(answer, indent=1))


if __name__ == "__main__":
    main()
