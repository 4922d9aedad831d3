"""CPU seconds are those that threads computed, and waiting is what another process took."""

from __future__ import annotations

import time

import torch

from harness.records.totals import Split, step_seconds, totals
from harness.training.cpu_time import CpuMeter

CPU = torch.device("cpu")


def test_sleep_is_no_computing_and_work_is() -> None:
    meter = CpuMeter(CPU, 1)
    meter.start()
    time.sleep(0.2)
    asleep = meter.fields()["cpu"]
    assert asleep["seconds"] < 0.1
    meter.start()
    end = time.process_time() + 0.2
    while time.process_time() < end:
        pass
    busy = meter.fields()["cpu"]
    assert 0.2 <= busy["seconds"] < 0.4
    assert busy["waited"] is None or busy["waited"] >= 0


def test_a_gpu_and_several_processes_are_timed_by_the_wall() -> None:
    for meter in (CpuMeter(torch.device("cuda"), 1), CpuMeter(CPU, 2)):
        meter.start()
        assert meter.fields() == {}


def test_totals_have_them_only_where_every_step_has() -> None:
    counts = dict.fromkeys(("positions", "valid", "visual", "special", "prompt", "target", "active", "scored"), 1)
    steps = [
        {"step": n, "epoch": 0, "counts": counts, "seconds": {"train": 2.0}, "devices": 1, "keep_ratio": ratio,
         "flops": 1.0, "flops_dense": 1.0, "loss": 1.0, "cpu": {"seconds": seconds, "waited": 0.5}}
        for n, (ratio, seconds) in enumerate([(1.0, 3.0), (0.5, 1.0)])
    ]  # fmt: skip
    whole = totals(Split(tuple(steps), (), (), 1), global_batch=1, expected_reduction=None)
    assert (whole["cpu_seconds"], whole["waited_seconds"]) == (4.0, 1.0)
    assert whole["step_seconds"]["cpu_dense_median"] == 3.0
    assert whole["step_seconds"]["cpu_sparse_median"] == 1.0
    del steps[1]["cpu"]
    part = totals(Split(tuple(steps), (), (), 1), global_batch=1, expected_reduction=None)
    assert part["cpu_seconds"] is part["waited_seconds"] is None
    assert step_seconds(steps)["cpu_dense_median"] is None
