"""Two processes, one with a batch of text alone: gradients are averaged and nobody waits for anybody."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
import torch
import torch.distributed as dist

import regate
from harness.common.progress import Progress
from harness.data.sources import open_data
from harness.models import adapter_for
from tests import forked
from tests.harness.worlds.videollama2 import user_supplied, write_world

if TYPE_CHECKING:
    from pathlib import Path


def worker(rank: int, world: int, folder: Path) -> None:
    """The gradient of the mean over two rows, one a process: saved, for the test to compare."""
    from harness.data.loading.batches import load

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=world)
    recipe = user_supplied(folder)
    data = open_data(recipe.data, recipe.paths, recipe.seed)
    adapter = adapter_for(recipe, data)
    rows = [load(sample, data, adapter.processor()) for sample in chosen(data)]
    model = torch.nn.parallel.DistributedDataParallel(regate.ScoredLM(adapter.student().train()))
    batch = adapter.processor().collate([rows[rank]])
    decision = regate.DenseGate().decide(batch.layout, batch.sample_ids_B, step=0)
    logits_NV, targets_N = adapter.forward(model, batch, decision)
    regate.token_loss(logits_NV, targets_N).sum().backward()
    grads = {name: value.grad for name, value in model.module.model.named_parameters() if value.grad is not None}
    torch.save(grads, folder / f"grads-{rank}.pt")
    dist.destroy_process_group()


def chosen(data: object) -> list[object]:
    """A sample of text alone and one with a video."""
    samples = data.samples  # type: ignore[attr-defined]
    text = next(sample for sample in samples if not sample.media)
    video = next(sample for sample in samples if sample.media and sample.media[0].kind == "video")
    return [text, video]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="gloo over a file is for Linux here")
def test_text_alone_in_one_process(tmp_path: Path) -> None:
    from harness.data.loading.batches import load

    recipe = user_supplied(write_world(tmp_path))
    data = open_data(recipe.data, recipe.paths, recipe.seed)
    adapter = adapter_for(recipe, data)
    adapter.prepare(Progress(quiet=True))
    assert forked.run(worker, 2, tmp_path) == [0, 0]
    one, other = (torch.load(tmp_path / f"grads-{rank}.pt", weights_only=True) for rank in (0, 1))
    model = adapter.student().train()
    for sample in chosen(data):
        batch = adapter.processor().collate([load(sample, data, adapter.processor())])
        decision = regate.DenseGate().decide(batch.layout, batch.sample_ids_B, step=0)
        logits_NV, targets_N = adapter.forward(regate.ScoredLM(model), batch, decision)
        (regate.token_loss(logits_NV, targets_N).sum() / 2).backward()
    grads = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    assert one.keys() == other.keys() == grads.keys()
    for name, grad in grads.items():
        assert torch.equal(one[name], other[name]), name
        torch.testing.assert_close(one[name], grad, rtol=1e-4, atol=1e-6 * float(grad.abs().max()) + 1e-9)
