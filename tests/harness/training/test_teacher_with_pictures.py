"""`gate.reference.pictures`: the store holds l_text - l_multimodal, each by the model's own plain forward pass.

Legend: S expanded length, V vocabulary.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from pydantic import ValidationError

import regate
from harness.common.errors import DataError
from harness.common.progress import Progress
from harness.config.recipe import Recipe
from harness.data.loading.epoch_view import EpochView, clips
from harness.pipeline import prepare
from harness.training.gate_stores import compute_reference_losses, open_reference, reference_place
from tests.harness.worlds.tiny import tiny_recipe

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness.data.sample import Batch
    from harness.training.run import Prepared

GATE = regate.GateConfig(
    selection="reference", reference=regate.ReferenceConfig(dtype="float32", pictures=True), warmup_steps=0
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    recipe = tiny_recipe(tmp_path_factory.mktemp("pictures"))
    return prepare(recipe.model_copy(update={"gate": GATE}), Progress(quiet=True))


def plain_losses(model: nn.Module, batch: Batch, *, pictures: bool) -> list[float]:
    """-log p of each target, one by one, by a whole forward pass over a single row."""
    visual_S = batch.layout.kind_BS[0] == regate.Kind.VISUAL
    ids_S = batch.input_ids_BS[0]
    ones_S = torch.ones_like(ids_S)
    given: dict[str, Any] = {"input_ids": ids_S[None], "attention_mask": ones_S[None], **batch.model_inputs()}
    if not pictures:
        given["input_ids"] = torch.where(visual_S, 0, ids_S)[None]
        given["attention_mask"] = (~visual_S).long()[None]
        given["position_ids"] = torch.arange(len(ids_S))[None]
        given = {key: given[key] for key in ("input_ids", "attention_mask", "position_ids")}
    with torch.no_grad():
        logits_SV: Tensor = model.eval()(**given).logits[0].double()
    labels = batch.layout.labels_BS[0].tolist()
    losses = []
    for place, label in enumerate(labels):
        if label != -100:
            row_V = logits_SV[place - 1]
            losses.append(float(torch.logsumexp(row_V, 0) - row_V[label]))
    return losses


def test_the_store_has_what_the_pictures_tell(run: Prepared) -> None:
    compute_reference_losses(run)
    place = reference_place(run)
    assert place is not None
    place.complete_with(seconds=1.0, devices=1, teacher=None)
    store = open_reference(run)
    assert store is not None
    processor, data = run.adapter.processor(), run.data
    student, teacher = run.adapter.student(), run.adapter.teacher()
    signs = set()
    for sample in data.samples:
        pictures = clips(sample, data.sampling, EpochView(0, 0), frames=data.frames, size=data.blank)
        batch = processor.collate([processor.encode(sample, pictures)])
        text = plain_losses(teacher, batch, pictures=False)
        seeing = plain_losses(student, batch, pictures=True)
        expected = torch.tensor(text) - torch.tensor(seeing)
        stored = store.losses(batch.sample_ids_B, batch.layout)[batch.layout.target_BS]
        torch.testing.assert_close(stored, expected, rtol=1e-3, atol=2e-3)  # float16
        signs |= set(expected.sign().tolist())
    assert signs >= {-1.0, 1.0}, "a picture may mislead a model that has seen few of them"


def test_the_store_is_named_by_what_is_seen_and_by_whom(run: Prepared) -> None:
    def made_from(other: Prepared) -> dict[str, Any]:
        place = reference_place(other)
        assert place is not None
        return place.made_from

    text = run.recipe.model_copy(update={"gate": replace(GATE, reference=replace(GATE.reference, pictures=False))})
    alone = made_from(replace(run, recipe=text))
    assert made_from(run).keys() - alone.keys() == {"pictures"}
    fewer = replace(run, data=replace(run.data, frames=4))
    assert made_from(fewer) != made_from(run)
    assert made_from(replace(fewer, recipe=text)) == alone, "text does not change with the frames"
    assert text.run_id != run.recipe.run_id
    assert "pictures" not in text.identity()["gate"]["reference"], "earlier runs keep their ids"


def test_media_that_cannot_be_read_stop_the_pass_by_name(run: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.data.loading.batches._WAITS", ())
    sample = run.data.samples[0]
    broken = replace(sample, media=(replace(sample.media[0], path=sample.media[0].path.with_name("gone.mp4")),))
    there = replace(run, data=replace(run.data, samples=[broken], fingerprint="other"))
    with pytest.raises(DataError, match=rf"{sample.key}: .*gone\.mp4"):
        compute_reference_losses(there)


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("devices", "shard_teacher", True, "leave devices.shard_teacher out"),
        ("gate", "selection", "random", "gate.selection random reads no reference losses"),
        ("gate", "candidates", "text", "reference.pictures needs candidates: targets"),
    ],
)
def test_what_it_cannot_be_with_is_refused_by_name(
    run: Prepared, section: str, key: str, value: Any, message: str
) -> None:
    content = json.loads(run.recipe.model_dump_json())
    content[section][key] = value
    with pytest.raises(ValidationError, match=message):
        Recipe.model_validate_json(json.dumps(content))
