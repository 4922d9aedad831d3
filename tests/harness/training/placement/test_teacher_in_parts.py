"""A teacher in parts over the processes of each machine writes down the losses of a whole one, to the bit."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import regate
from harness.training.launching import processes
from harness.training.launching.agent import free_port
from harness.training.placement.sharding import spread_for_scoring
from regate.teacher import write_losses
from tests import forked
from tests.regate import tiny

from .test_parallel import meet

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

pytestmark = pytest.mark.slow
SAMPLES = 7
CASES: dict[str, dict[str, Any]] = {
    "Qwen2": {},
    "Qwen2, head and embeddings shared": {"tie_word_embeddings": True},
    "Qwen2Moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
}


def build(case: str) -> nn.Module:
    teacher: nn.Module = tiny.lm(case.split(",")[0], double=False, **CASES[case])
    return teacher.requires_grad_(False)


def data() -> list[tiny.Rows]:
    """Batches with visual positions, each a sample of a length of its own; one without a target."""
    rows = [
        tiny.rows(batch=1, length=14 + sample, prompt=6, visual=3, pad="none", seed=sample)
        for sample in range(SAMPLES)
    ]
    none = torch.full_like(rows[3].layout.labels_BS, -100)
    rows[3].layout = regate.layout_from_labels(none, rows[3].mask_BS, input_ids_BS=rows[3].input_ids_BS)
    return rows


def writer(folder: Path, rows: list[tiny.Rows]) -> regate.ReferenceWriter:
    keys = [regate.store_keys(row.layout) for row in rows]
    return regate.ReferenceWriter.create(
        folder,
        sample_ids=[int(row.sample_ids_B) for row in rows],
        num_targets=[number for (number,), _ in keys],
        checksums=[checksum for _, (checksum,) in keys],
        fingerprint={"teacher": "tiny"},
    )


def worker(rank: int, world: int, folder: Path, port: int, machines: int) -> None:
    """The last process has most of the batches; where the losses are half there, it has all that is left."""
    meet(rank, world, port, local=world // machines)
    rows = data()
    held = {}
    for case in CASES:
        scored, shared_by = spread_for_scoring(lambda case=case: build(case), torch.device("cpu"), processes.nodes())
        assert shared_by.size() == world // machines
        mine = [row for number, row in enumerate(rows) if min(number, world - 1) == rank]
        store = writer(folder / case, rows)
        write_losses(scored, mine, store, placeholder_id=2, dtype="float32", shared_by=shared_by)
        held[case] = sum(value.to_local().numel() for value in scored.parameters())
    torch.save(held, folder / f"held-{rank}.pt")
    processes.destroy_process_group()


@pytest.mark.parametrize(("world", "machines"), [(2, 1), (4, 2)])
def test_losses_are_those_of_a_whole_teacher(tmp_path: Path, world: int, machines: int) -> None:
    if sys.platform != "linux":
        pytest.skip("gloo over a file is for Linux here")
    rows = data()
    for case in CASES:
        writer(tmp_path / case, rows)  # by one process, so that the others find it
    # A pass that was stopped: what the first process would have to do is done.
    write_losses(build("Qwen2"), rows[:1], writer(tmp_path / "Qwen2", rows), placeholder_id=2, dtype="float32")
    assert forked.run(worker, world, tmp_path, free_port(), machines) == [0] * world
    held = [torch.load(tmp_path / f"held-{rank}.pt") for rank in range(world)]
    for case in CASES:
        whole = build(case)
        alone = writer(tmp_path / f"alone {case}", rows)
        write_losses(whole, rows, alone, placeholder_id=2, dtype="float32")
        wanted, parts = alone.finish().values, writer(tmp_path / case, rows).finish().values
        np.testing.assert_array_equal(parts, wanted, err_msg=case)
        assert np.isfinite(wanted).all()
        total = sum(value.numel() for value in whole.parameters())
        each = world // machines
        for machine in range(machines):
            of_machine = [held[rank][case] for rank in range(machine * each, (machine + 1) * each)]
            assert sum(of_machine) == total
            assert max(of_machine) <= math.ceil(0.6 * total), "no unit stayed whole after the pass"
