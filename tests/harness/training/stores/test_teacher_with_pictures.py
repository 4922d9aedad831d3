"""`gate.reference.pictures`: the store holds l_text - l_multimodal, each by the model's own plain forward pass.

Legend: S expanded length, V vocabulary.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from pydantic import ValidationError

import regate
from harness.common.errors import DataError, EnvironmentProblem
from harness.common.progress import Progress
from harness.config.model import TinyHFModel
from harness.config.recipe import Recipe
from harness.config.weight_files import missing_weights
from harness.data.loading.batches import picture_batches
from harness.data.loading.epoch_view import EpochView, clips
from harness.models.tiny.checkpoint import TinyCheckpoint
from harness.pipeline import prepare
from harness.plan.teacher import seeing_footprint
from harness.training.stores.gate_stores import (
    _losses_with_pictures,
    compute_reference_losses,
    open_reference,
    reference_place,
)
from harness.training.stores.other_teacher import losses_of_vlm
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


# --- another model as the one that sees the pictures -----------------------------------------------------


def with_teacher(run: Prepared, name: str) -> Prepared:
    gate = replace(GATE, reference=replace(GATE.reference, pictures=name))
    return replace(run, recipe=run.recipe.model_copy(update={"gate": gate}))


@pytest.fixture(scope="module")
def other(run: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model of another width, kept below the run's weights; its tokenizer numbers the words the other way round."""
    recipe = tiny_recipe(tmp_path_factory.mktemp("other"), hidden=16, layers=1)
    adapter: Any = prepare(recipe, Progress(quiet=True)).adapter
    model = adapter.student().eval()
    folder = Path(run.recipe.paths.weights) / "kept"
    adapter.save(model, folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    words = [word for word in vocabulary if len(word) > 2 and not word.startswith(("<", "[", "##"))]
    vocabulary |= dict(zip(words, reversed([vocabulary[word] for word in words]), strict=True))
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return TinyCheckpoint(folder), model


def test_the_store_has_what_the_pictures_tell_another_model(run: Prepared, other: Any) -> None:
    """Its own token ids for the same words, in each row as the student's targets stand."""
    adapter, model = other
    there = with_teacher(run, "kept")
    compute_reference_losses(there)
    place = reference_place(there)
    assert place is not None
    place.complete_with(seconds=1.0, devices=1, teacher=None)
    store = open_reference(there)
    assert store is not None
    own, processor, data = run.adapter.processor(), adapter.processor(), run.data
    teacher = run.adapter.teacher()
    otherwise = False
    for sample in data.samples:
        pictures = clips(sample, data.sampling, EpochView(0, 0), frames=data.frames, size=data.blank)
        batch, seen = (by.collate([by.encode(sample, pictures)]) for by in (own, processor))
        otherwise |= batch.input_ids_BS.tolist() != seen.input_ids_BS.tolist()
        text, seeing = plain_losses(teacher, batch, pictures=False), plain_losses(model, seen, pictures=True)
        stored = store.losses(batch.sample_ids_B, batch.layout)[batch.layout.target_BS]
        torch.testing.assert_close(stored, torch.tensor(text) - torch.tensor(seeing), rtol=1e-3, atol=2e-3)
    assert otherwise, "the two tokenizers number their words alike"
    mine = reference_place(run)
    assert mine is not None
    assert place.made_from["pictures"].keys() - mine.made_from["pictures"].keys() == {"processor"}
    assert place.made_from["pictures"]["weights"] != mine.made_from["pictures"]["weights"]
    assert there.recipe.run_id != run.recipe.run_id


def test_a_model_of_transformers_reads_by_its_own_template(tmp_path: Path) -> None:
    """The student's own weights, named as another model's folder, give the losses of the student's own weights."""
    recipe = tiny_recipe(tmp_path)
    model = TinyHFModel.model_validate({"adapter": "tiny_hf", "family": "internvl", "hidden": 32, "heads": 2})
    run = prepare(recipe.model_copy(update={"model": model, "gate": GATE}), Progress(quiet=True))
    run.adapter.save(run.adapter.student(), tmp_path / "weights" / "kept")
    processor = run.adapter.processor()
    seen, text = (next(picture_batches(run.data, processor, rows=2, media=media)) for media in (True, False))
    train = run.recipe.train.model_copy(update={"micro_batch": 2})
    few = replace(run, recipe=run.recipe.model_copy(update={"train": train}))
    student, other = _losses_with_pictures(run), losses_of_vlm(with_teacher(few, "kept"))
    with torch.inference_mode():
        own, named = student(seen), other(text)
    assert len(own) > 10
    torch.testing.assert_close(named, own)


def test_a_pass_that_goes_on_reads_the_same_rows(run: Prepared, other: Any) -> None:
    """Batches that are scored already are passed over, and the next ones get the losses of their own samples."""
    losses = losses_of_vlm(with_teacher(run, "kept"))
    batches = list(picture_batches(run.data, run.adapter.processor(), rows=run.recipe.train.micro_batch, media=False))
    assert len(batches) > 2
    whole = [losses(batch) for batch in batches]
    later = losses_of_vlm(with_teacher(run, "kept"))(batches[-1])
    assert torch.equal(later, whole[-1])
    assert [len(values) for values in whole] == [int(batch.layout.target_BS.sum()) for batch in batches]


def test_other_pieces_are_refused_by_name(run: Prepared, other: Any, tmp_path: Path) -> None:
    """A tokenizer that lacks a word of the answers cuts it into letters."""
    folder = Path(run.recipe.paths.weights)
    shutil.copytree(folder / "kept", folder / "cut")
    path = folder / "cut" / "tokenizer.json"
    content = json.loads(path.read_text())
    words = content["model"]["vocab"]
    sample = run.data.samples[0]
    word = next(word for word in sample.turns[-1].text.lower().split() if word in words and len(word) > 3)
    words[f"{word}-gone"] = words.pop(word)
    path.write_text(json.dumps(content))
    with pytest.raises(EnvironmentProblem, match=rf"weights.cut cuts the answers of .* into other tokens.* '{word}"):
        losses_of_vlm(with_teacher(run, "cut"))


def test_what_is_no_multimodal_model_is_refused_by_name(run: Prepared) -> None:
    folder = Path(run.recipe.paths.weights) / "words"
    folder.mkdir()
    there = with_teacher(run, "words")
    lines = missing_weights(there.recipe)
    assert len(lines) == 3
    assert all("words/" in line and "named by gate.reference.pictures" in line for line in lines)
    assert seeing_footprint(there.recipe, None) is None  # type: ignore[arg-type]
    (folder / "config.json").write_text('{"model_type": "qwen2"}')
    with pytest.raises(EnvironmentProblem, match=r"words is a qwen2, and not a multimodal model"):
        reference_place(there)


def test_the_plan_counts_the_other_model(run: Prepared, other: Any) -> None:
    _, model = other
    footprint = seeing_footprint(with_teacher(run, "kept").recipe, None)  # type: ignore[arg-type]
    assert footprint is not None
    text = model.config.text_config
    assert (footprint.decoder.hidden, footprint.decoder.layers) == (text.hidden_size, text.num_hidden_layers)
    own = seeing_footprint(run.recipe, footprint)
    assert own is footprint, "true is the student's own"
