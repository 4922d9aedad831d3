"""The adapter: files supplied or made, what is missing, what is saved, and what is told of the conversations."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

import regate
from harness import pipeline
from harness.common.errors import DataError, EnvironmentProblem, RecipeError, StaleError
from harness.common.progress import Progress
from harness.config.load import load_recipe
from harness.data.sample import Sample, Turn
from harness.data.sources import DataSet, open_data
from harness.models import adapter_for, checkpoint_files
from harness.models.videollama2.adapter import VideoLLaMA2Adapter
from harness.models.videollama2.processor import VideoLLaMA2Conversations
from harness.training.stores.gate_stores import reference_place
from regate.types import Kind
from tests.harness.worlds.videollama2 import user_supplied, write_world

if TYPE_CHECKING:
    from pathlib import Path

    from harness.config.recipe import Recipe


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where the shipped VideoLLaMA2 recipe finds weights and data, at toy size."""
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def recipe(world: Path) -> Recipe:
    return user_supplied(world)


@pytest.fixture(scope="module")
def data(recipe: Recipe) -> DataSet:
    return open_data(recipe.data, recipe.paths, recipe.seed)


@pytest.fixture(scope="module")
def adapter(recipe: Recipe, data: DataSet) -> VideoLLaMA2Adapter:
    made = adapter_for(recipe, data)
    assert isinstance(made, VideoLLaMA2Adapter)
    made.prepare(Progress(quiet=True))
    return made


def test_the_student_is_the_parts_and_the_tower_is_frozen(adapter: VideoLLaMA2Adapter) -> None:
    model = adapter.student()
    frozen = {name for name, value in model.named_parameters() if not value.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if name.startswith("model.vision_tower.")}
    assert model.config.placeholder_token_id == adapter.processor().placeholder_id
    assert adapter.name == "videollama2"
    assert adapter.missing() == []


def test_the_teacher_is_the_language_model_alone(adapter: VideoLLaMA2Adapter) -> None:
    """Same weights as the student's decoder, nothing of the vision side, and the same logits on text."""
    teacher, student = adapter.teacher(), adapter.student()
    assert not teacher.training
    assert not any(value.requires_grad for value in teacher.parameters())
    assert not any("vision" in name or "projector" in name for name, _ in teacher.named_modules())
    decoder = student.model.language_model.state_dict()
    assert all(torch.equal(value, decoder[name]) for name, value in teacher.model.state_dict().items())
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        assert torch.equal(teacher(input_ids=ids).logits, student.eval()(input_ids=ids).logits)


def test_a_teacher_of_another_size(world: Path, adapter: VideoLLaMA2Adapter) -> None:
    with pytest.raises(EnvironmentProblem, match=r"named by gate\.reference\.model"):
        user_supplied(world, "gate.reference.model=Qwen2-1.5B-Instruct", run=False)
    other = adapter_for(user_supplied(world, "gate.reference.model=other-teacher"), None)
    assert other.teacher_fingerprint != adapter.teacher_fingerprint
    assert other.weights_fingerprint == adapter.weights_fingerprint
    assert other.teacher().config.num_hidden_layers == 1


def test_what_it_saves_it_loads_and_the_official_form_is_kept(adapter: VideoLLaMA2Adapter, tmp_path: Path) -> None:
    model = adapter.student()
    adapter.save(model, tmp_path)
    names = json.loads((tmp_path / "config.json").read_text())
    assert names["model_type"] == "videollama2_qwen2"
    assert (tmp_path / "tokenizer.json").is_file()
    again = adapter.load(tmp_path).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in model.state_dict().items())


def test_the_shape_is_that_of_the_models_config(adapter: VideoLLaMA2Adapter) -> None:
    shape, config = adapter.shape(), adapter.student().config
    text = config.text_config
    assert (shape.hidden, shape.layers, shape.vocabulary) == (
        text.hidden_size,
        text.num_hidden_layers,
        text.vocab_size,
    )
    assert (shape.heads, shape.kv_heads) == (text.num_attention_heads, text.num_key_value_heads)
    assert shape.head_dim * shape.heads == text.hidden_size
    assert shape.vision_flops > 0
    assert 0 < shape.vision_backward < 3


def test_fingerprints_follow_the_files(
    adapter: VideoLLaMA2Adapter, recipe: Recipe, world: Path, tmp_path: Path
) -> None:
    moved = shutil.copytree(world, tmp_path / "moved")
    other = adapter_for(user_supplied(moved), None)
    assert other.weights_fingerprint == adapter.weights_fingerprint
    projector = next(moved.rglob("mm_projector.bin"))
    projector.write_bytes(projector.read_bytes() + b"\0")
    assert other.weights_fingerprint != adapter.weights_fingerprint
    assert other.teacher_fingerprint == adapter.teacher_fingerprint


@pytest.mark.parametrize(
    "gone",
    ["Qwen2-7B-Instruct/model.safetensors", "Qwen2-7B-Instruct/tokenizer_config.json",
     "siglip-so400m-patch14-384/preprocessor_config.json", "VideoLLaMA2.1-7B-16F-Base/mm_projector.bin"],
)  # fmt: skip
def test_every_missing_file_is_named_with_its_origin(world: Path, tmp_path: Path, gone: str) -> None:
    moved = shutil.copytree(world, tmp_path / "moved")
    (moved / "workspace" / "weights" / gone).unlink()
    with pytest.raises(EnvironmentProblem, match=gone.rsplit("/", 1)[1]) as raised:
        user_supplied(moved, run=False)
    assert "Hugging Face hub" in str(raised.value)


def shown(adapter: VideoLLaMA2Adapter, samples: list[Sample]) -> VideoLLaMA2Adapter:
    assert adapter.data is not None
    return VideoLLaMA2Adapter(adapter.recipe, replace(adapter.data, samples=samples))


class Ears(Progress):
    """A progress that keeps what it is told."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.heard: list[str] = []

    def say(self, text: str) -> None:
        self.heard.append(text)


def test_conversations_that_will_be_cut_are_told(adapter: VideoLLaMA2Adapter) -> None:
    long = Sample(1, "a long one", (), (Turn("user", "Tell."), Turn("assistant", "word " * 3000)))
    short = Sample(2, "a short one", (), (Turn("user", "Tell."), Turn("assistant", "word")))
    ears = Ears()
    shown(adapter, [short, long]).prepare(ears)
    assert ears.heard == ["1 of 2 samples are longer than model.max_length 2048 tokens and are cut there: a long one"]


@pytest.mark.parametrize(
    ("turns", "words"),
    [((Turn("user", "a"),), "  bad: 1 turns"),
     ((Turn("user", "word " * 3000), Turn("assistant", "b")), "  bad: .* no target is within")],
)  # fmt: skip
def test_conversations_that_cannot_be_used_stop_the_run_before_it_starts(
    adapter: VideoLLaMA2Adapter, turns: tuple[Turn, ...], words: str
) -> None:
    with pytest.raises(DataError, match=words):
        shown(adapter, [Sample(1, "bad", (), turns)]).prepare(Progress(quiet=True))


def test_the_protocol_of_a_processor(adapter: VideoLLaMA2Adapter, data: DataSet) -> None:
    from harness.data.loading.batches import load
    from harness.evaluation.lmms.scorer import Speaks

    processor = adapter.processor()
    assert isinstance(processor, Speaks)
    for sample in data.samples:
        row, text = load(sample, data, processor), processor.encode(sample, None)
        assert torch.equal(row.input_ids_S, text.input_ids_S)
        assert (row.input_ids_S[row.kind_S == Kind.VISUAL] == processor.placeholder_id).all()
        prompt = processor.encode_prompt(sample, None)
        assert torch.equal(prompt.input_ids_S, row.input_ids_S[: len(prompt.input_ids_S)])
        last = int((row.labels_S != -100).nonzero()[-1])
        answer = [turn.text for turn in sample.turns][-1]
        words = row.input_ids_S[len(prompt.input_ids_S) : last + 1].tolist()
        assert processor.decode(words) == answer
        assert processor.end_id in words


def test_a_toy_model_is_made_once_and_the_same(tmp_path: Path) -> None:
    places = [f"paths.{name}={tmp_path / name}" for name in ("data", "weights", "stores", "results")]
    small = ["data.train_clips=6", "data.test_clips=2", "data.stage_clips=2", *places]
    recipe = load_recipe("tiny_videollama2_regate", small)
    with pytest.raises(EnvironmentProblem, match="made by `harness prepare`"):
        adapter_for(recipe, None).student()
    from harness.data.sources import make_data

    make_data(recipe.data, recipe.paths, recipe.seed)
    data = open_data(recipe.data, recipe.paths, recipe.seed)
    made = adapter_for(recipe, data)
    assert len(made.missing()) == 3
    made.prepare(Progress(quiet=True))
    assert made.missing() == []
    first, words = made.weights_fingerprint, made.processor().fingerprint
    shutil.rmtree(tmp_path / "weights")
    again = adapter_for(recipe, data)
    again.prepare(Progress(quiet=True))
    assert (again.weights_fingerprint, again.processor().fingerprint) == (first, words)
    assert isinstance(again.processor(), VideoLLaMA2Conversations)
    for change, words in (("heads=7", r"model\.heads 7"), ("patch=64", r"model\.patch 64")):
        wrong = adapter_for(load_recipe("tiny_videollama2_regate", [*small, f"model.{change}"]), data)
        with pytest.raises(RecipeError, match=words):
            wrong.prepare(Progress(quiet=True))


def test_one_training_step_reaches_connector_and_decoder(adapter: VideoLLaMA2Adapter, data: DataSet) -> None:
    from harness.data.loading.batches import load

    processor, model = adapter.processor(), adapter.student()
    batch = processor.collate([load(sample, data, processor) for sample in data.samples])
    decision: Any = regate.DenseGate().decide(batch.layout, batch.sample_ids_B, step=0)
    logits_NV, targets_N = adapter.forward(regate.ScoredLM(model), batch, decision)
    assert logits_NV.shape == (len(targets_N), adapter.shape().vocabulary)
    regate.token_loss(logits_NV, targets_N).mean().backward()
    for name, value in model.named_parameters():
        assert (value.grad is not None) == value.requires_grad, name


def test_a_byte_in_the_middle_of_the_weights_is_seen(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fingerprint reads beginnings and ends; a run is held to every byte, and so are the teacher's losses."""
    monkeypatch.setattr(checkpoint_files, "_PIECE", 4096)  # of files that are small here
    moved = shutil.copytree(world, tmp_path / "moved")
    recipe, progress = user_supplied(moved), Progress(quiet=True)
    language_model = adapter_for(recipe, None).teacher_files()[0]
    run = pipeline.prepare(recipe, progress)
    place = reference_place(run)
    assert place is not None
    place.path.mkdir(parents=True)
    place.complete_with(seconds=1.0, devices=1, teacher="0" * 64)
    with pytest.raises(StaleError, match="computed by a teacher whose files differ"):
        pipeline.reference(run)
    fingerprint = run.adapter.weights_fingerprint
    size = language_model.stat().st_size
    with language_model.open("r+b") as file:
        file.seek(size // 2)
        byte = file.read(1)[0]
        file.seek(size // 2)
        file.write(bytes([byte ^ 1]))
    assert adapter_for(recipe, None).weights_fingerprint == fingerprint
    with pytest.raises(StaleError, match="started with other content of the weights"):
        pipeline.prepare(recipe, progress)
