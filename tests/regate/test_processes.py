"""Several processes, and processes that die.

Legend: B rows, S expanded length.
"""

from __future__ import annotations

import json
import signal

import numpy as np
import pytest
import torch

import regate
from tests import forked
from tests.regate import workers


def selections(folder):
    """What every (step, sample) selected; every process's last word."""
    found = {}
    for file in sorted(folder.glob("selected-*.jsonl")):
        for line in file.read_text().splitlines():
            step, sample, chosen = json.loads(line)
            assert found.setdefault((step, sample), chosen) == chosen
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run that one process made without being disturbed."""
    folder = tmp_path_factory.mktemp("alone")
    workers.make_reference(folder)
    assert forked.run(workers.train, 1, str(folder), None) == [0]
    return folder


def assert_same_run(folder, other):
    assert selections(folder) == selections(other)
    assert len(selections(folder)) == workers.STEPS * workers.GLOBAL_BATCH
    epoch = workers.STEPS // workers.STEPS_AN_EPOCH
    one, two = (np.load(place / "difficulty" / f"m.e{epoch}.npy") for place in (folder, other))
    assert one.any()
    np.testing.assert_array_equal(one, two)
    ours, theirs = torch.load(folder / "final.pt"), torch.load(other / "final.pt")
    assert all(torch.allclose(ours[name], theirs[name], rtol=1e-9, atol=1e-12) for name in ours)


@pytest.mark.slow
def test_two_processes_train_as_one(alone, tmp_path):
    workers.make_reference(tmp_path)
    assert forked.run(workers.train, 2, str(tmp_path), None) == [0, 0]
    assert_same_run(tmp_path, alone)


@pytest.mark.slow
@pytest.mark.parametrize(("killed", "resumed"), [((1, 4), 1), ((0, 7), 3)])
def test_killed_training_resumes_with_other_processes(alone, tmp_path, killed, resumed):
    workers.make_reference(tmp_path)
    codes = forked.run(workers.train, 2, str(tmp_path), killed)
    assert codes[killed[0]] == -signal.SIGKILL
    assert forked.run(workers.train, resumed, str(tmp_path), None) == [0] * resumed
    assert_same_run(tmp_path, alone)


@pytest.mark.slow
def test_gradient_with_uneven_targets_and_one_process_with_none(tmp_path):
    workers.make_reference(tmp_path)
    for world in (1, 2):
        assert forked.run(workers.gradient, world, str(tmp_path)) == [0] * world
    one, two = (torch.load(tmp_path / f"gradient-{world}.pt") for world in (1, 2))
    assert one["total"] == two["total"] > 0
    assert abs(one["loss"] - two["loss"]) <= 1e-6 * one["loss"]
    for name, grad in one["grads"].items():
        assert (two["grads"][name] - grad).norm() <= 1e-6 * grad.norm(), name


@pytest.mark.slow
def test_sharded_parameters(tmp_path):
    workers.make_reference(tmp_path)
    for world in (1, 2):
        assert forked.run(workers.sharded, world, str(tmp_path)) == [0] * world
    one, two = (torch.load(tmp_path / f"sharded-{world}.pt") for world in (1, 2))
    for name, grad in one.items():
        assert grad.norm() > 0
        assert (two[name] - grad).norm() <= 1e-6 * grad.norm(), name


@pytest.mark.slow
def test_killed_scoring_resumes_with_more_processes(tmp_path):
    victims = [forked.context().Process(target=workers.score, args=(rank, 2, str(tmp_path), 2)) for rank in (0, 1)]
    for victim in victims:
        victim.start()
    for victim in victims:
        victim.join()
        assert victim.exitcode == -signal.SIGKILL
    done = tmp_path / "reference" / "done.npy"
    half = int(np.load(done).sum())
    assert half == 4
    with pytest.raises(regate.StoreError, match=f"{half} of {workers.SAMPLES} samples are scored"):
        regate.ReferenceStore.open(tmp_path / "reference")
    before = np.load(tmp_path / "reference" / "losses.npy")

    assert forked.run(workers.score, 3, str(tmp_path), None) == [0, 0, 0]
    rows = [workers.data_of(sample) for sample in range(workers.SAMPLES)]
    keys = [regate.store_keys(one.layout) for one in rows]
    store = regate.ReferenceWriter.create(
        tmp_path / "reference",
        sample_ids=list(range(workers.SAMPLES)),
        num_targets=[number[0] for number, _ in keys],
        checksums=[checksum[0] for _, checksum in keys],
        fingerprint={"teacher": "tiny"},
    ).finish()
    assert np.isfinite(store.values).all()
    kept = np.isfinite(before)
    assert 0 < kept.sum() < kept.size
    np.testing.assert_array_equal(before[kept], store.values[kept])
    undisturbed = tmp_path / "undisturbed"
    assert forked.run(workers.score, 1, str(undisturbed), None) == [0]
    np.testing.assert_array_equal(np.load(undisturbed / "reference" / "losses.npy"), store.values)
