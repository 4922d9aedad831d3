"""The adapter: files supplied or made, what is missing, what is saved, and what is told of the conversations."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

import regate
from harness.common.errors import EnvironmentProblem, RecipeError
from harness.common.progress import Progress
from harness.config.load import load_recipe
from harness.data.loading.batches import load
from harness.data.sample import Sample, Turn
from harness.data.sources import DataSet, open_data
from harness.evaluation.lmms.generation import Limits, Speaks
from harness.evaluation.lmms.scorer import Request, Scorer
from harness.models import adapter_for
from harness.models.videochat2.adapter import VideoChat2Adapter
from harness.models.videochat2.checkpoint_names import LORA
from harness.models.videochat2.weights import save_stage3
from regate.types import Kind
from tests.harness.worlds.videochat2 import NAME, user_supplied, write_world

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from harness.config.recipe import Recipe


class Ears(Progress):
    """A progress that keeps what it is told."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.heard: list[str] = []

    def say(self, text: str) -> None:
        self.heard.append(text)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where the shipped VideoChat2 recipe finds weights and data, at toy size."""
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def recipe(world: Path) -> Recipe:
    return user_supplied(world, "data.frames=2", run=False)


@pytest.fixture(scope="module")
def data(recipe: Recipe) -> DataSet:
    return open_data(recipe.data, recipe.paths, recipe.seed)


@pytest.fixture(scope="module")
def adapter(recipe: Recipe, data: DataSet) -> VideoChat2Adapter:
    made = adapter_for(recipe, data)
    assert isinstance(made, VideoChat2Adapter)
    return made


@pytest.fixture(scope="module")
def student(adapter: VideoChat2Adapter) -> nn.Module:
    return adapter.student()


def test_every_tensor_of_the_files_is_accounted_for(adapter: VideoChat2Adapter) -> None:
    """Once for the data, the processor and the weights: `prepare` is then done."""
    ears = Ears()
    assert adapter.needs_check()
    adapter.prepare(ears)
    assert [line.split(":")[0] for line in ears.heard] == [
        "umt_l16_qformer.pth",
        "videochat2_mistral_7b_stage2.pth",
    ]
    assert not adapter.needs_check()
    assert adapter.data is not None
    assert VideoChat2Adapter(adapter.recipe, replace(adapter.data, fingerprint="other")).needs_check()
    assert not VideoChat2Adapter(adapter.recipe, None).needs_check()
    assert all("tensors used" in line for line in ears.heard)
    assert "itm_head.weight" in ears.heard[0]


def test_what_is_frozen_and_what_is_trained(adapter: VideoChat2Adapter, student: nn.Module) -> None:
    base: Any = student.get_base_model()  # type: ignore[operator]
    for name, value in base.named_parameters():
        decoder = name.startswith(("model.language_model.", "lm_head."))
        assert value.requires_grad == (not decoder or LORA in name), name
    assert base.config.vision_config.checkpoint_blocks == 18
    assert base.config.bos_as_ones
    assert (adapter.name, adapter.missing()) == ("videochat2", [])


def test_one_training_step_reaches_every_trained_tensor(
    adapter: VideoChat2Adapter, data: DataSet, student: nn.Module
) -> None:
    """Videos and a picture in one batch, and words alone: no process waits for a gradient that does not come."""
    processor = adapter.processor()
    seen = processor.collate([load(sample, data, processor) for sample in data.samples])
    assert sorted(seen.inputs["frame_counts"]) == [1, 2, 2]
    words = Sample(9, "words", (), (Turn("user", "Tell."), Turn("assistant", "word")))
    student.train()
    for batch in (seen, processor.collate([processor.encode(words, None)])):
        student.zero_grad()
        decision = regate.DenseGate().decide(batch.layout, batch.sample_ids_B, step=0)
        logits_NV, targets_N = adapter.forward(regate.ScoredLM(student), batch, decision)
        assert logits_NV.shape == (len(targets_N), adapter.shape().vocabulary)
        regate.token_loss(logits_NV, targets_N).mean().backward()
        for name, value in student.named_parameters():
            assert (value.grad is not None) == value.requires_grad, name
        if "pixel_values" not in batch.inputs:
            vision = [v for n, v in student.named_parameters() if "vision" in n or "qformer" in n or "projector" in n]
            assert all(not value.grad.any() for value in vision if value.grad is not None)
    student.eval()


def test_the_protocol_of_a_processor(adapter: VideoChat2Adapter, data: DataSet) -> None:
    processor = adapter.processor()
    assert isinstance(processor, Speaks)
    for sample in data.samples:
        row, text = load(sample, data, processor), processor.encode(sample, None)
        assert torch.equal(row.input_ids_S, text.input_ids_S)
        assert (row.input_ids_S[row.kind_S == Kind.VISUAL] == processor.placeholder_id).all()
        prompt = processor.encode_prompt(sample, None)
        assert torch.equal(prompt.input_ids_S, row.input_ids_S[: len(prompt.input_ids_S)])


def test_answers_of_the_evaluation_are_those_of_generate(
    adapter: VideoChat2Adapter, data: DataSet, student: nn.Module
) -> None:
    """Two rows with videos, in one batch and through the harness's own greedy decoding; options share a clip."""
    from harness.data.loading.video import read_frames

    model, processor = student.eval(), adapter.processor()
    media = [sample.media[0] for sample in data.samples if sample.media[0].kind == "video"]
    limits, options = Limits(4, ("\n\n",)), ("red", "a tree")
    requests = [Request(str(i), (one,), "<media:0>\nWhat happens?", options, limits) for i, one in enumerate(media)]
    chunk = dict(enumerate(requests))
    scorer = Scorer(adapter, model, lambda one: read_frames(one, frames=2), batch_size=4)
    (answers,) = scorer.answers([chunk])
    for i, request in chunk.items():
        text, _ = answers[i]
        question = Sample(1, request.key, request.media, (Turn("user", request.prompt),))
        prompt = processor.collate([processor.encode_prompt(question, [read_frames(request.media[0], frames=2)])])
        made = model.generate(**prompt.model_inputs(), max_new_tokens=4, do_sample=False)  # type: ignore[operator]
        assert processor.decode(made[0, prompt.input_ids_BS.shape[1] :].tolist()) == text
    calls: list[int] = []
    vision: Any = model.get_base_model().model.vision  # type: ignore[operator]
    handle = vision.patch_embed.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    (together,) = scorer.option_losses([chunk])
    handle.remove()
    assert calls == [2], "a clip is read once for all its options"
    alone = Scorer(adapter, model, lambda one: read_frames(one, frames=2), batch_size=1)
    for i, request in chunk.items():
        (other,) = alone.option_losses([{i: request}])
        assert [o.loss for o in together[i]] == pytest.approx([o.loss for o in other[i]], abs=1e-4)


def test_what_it_saves_it_loads(adapter: VideoChat2Adapter, student: nn.Module, tmp_path: Path) -> None:
    adapter.save(student, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["language_model"] == adapter.files.language_model.name
    assert (tmp_path / "tokenizer.json").is_file()
    assert (tmp_path / "qformer_tokenizer" / "tokenizer.json").is_file()
    assert not any("language_model" in path.name for path in tmp_path.iterdir())
    state = student.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in adapter.load(tmp_path).state_dict().items())
    save_stage3(student, tmp_path / "official.pth")
    other = adapter.load(tmp_path / "official.pth").state_dict()
    assert all(torch.equal(value, state[name]) for name, value in other.items())


def test_it_goes_on_from_stage_3_and_evaluates_hd(world: Path, student: nn.Module, data: DataSet) -> None:
    """One file instead of two. The HD variant has the same tensors and cuts pictures into tiles."""
    save_stage3(student, world / "workspace" / "weights" / "three.pth")
    third = "model={adapter: videochat2, language_model: Mistral-7B-Instruct-v0.2, stage3: three.pth%s}"
    again = adapter_for(user_supplied(world, third % "", run=False), None).student()
    assert all(torch.equal(value, student.state_dict()[name]) for name, value in again.state_dict().items())
    hd = adapter_for(user_supplied(world, "data.frames=2", third % ", hd: true, merged: true"), None)
    with pytest.raises(RecipeError, match="evaluated, not trained"):
        hd.student()
    model: Any = hd.load(world / "workspace" / "weights" / "three.pth").eval()
    assert model.config.lora is None
    picture = next(sample for sample in data.samples if sample.media[0].kind == "image")
    row = load(picture, data, hd.processor())
    clips = row.pixels.shape[0]  # type: ignore[union-attr]
    assert clips > 1
    assert int((row.kind_S == Kind.VISUAL).sum()) == clips * 96
    with torch.no_grad():
        assert torch.isfinite(model(**hd.processor().collate([row]).model_inputs()).logits).all()


def test_the_recipe_s_choices_reach_model_and_processor(world: Path) -> None:
    changes = ["model.bos_as_ones=false", "model.vision_checkpointing=0", "model.colours=clip"]
    other: Any = adapter_for(user_supplied(world, *changes), None)
    config = other.student().get_base_model().config
    assert not config.bos_as_ones
    assert config.vision_config.checkpoint_blocks == 0
    assert other.processor().pixels.colours == "clip"
    assert not other.processor().bos_as_ones


def test_conversations_that_lose_something_are_told(adapter: VideoChat2Adapter) -> None:
    def talk(number: int, *texts: str) -> Sample:
        roles: Any = ("system", "user", "assistant")
        return Sample(number, f"no {number}", (), tuple(map(Turn, roles, texts)))

    assert adapter.data is not None
    samples = [
        talk(1, "Be brief.", "Tell.", "word"),
        talk(2, "Be brief.", "Tell.", "word " * 600),
        talk(3, "Be brief.", "word " * 600, "word"),
        talk(4, "watch the video " * 30, "Tell.", "word"),
    ]
    ears = Ears()
    VideoChat2Adapter(adapter.recipe, replace(adapter.data, samples=samples)).prepare(ears)
    cut, lost, instruction = ears.heard[2:]
    assert "1 of 4 samples are longer than model.max_length 512 tokens and are cut there: no 2" in cut
    assert "1 of 4 samples have no answer within model.max_length 512 tokens and train nothing: no 3" in lost
    assert "1 of 4 instructions are longer than 64 tokens, and the QFormer reads their ends only: no 4" in instruction


@pytest.mark.parametrize(
    "gone", ["model.safetensors", "vocab.txt", "umt_l16_qformer.pth", "videochat2_mistral_7b_stage2.pth"]
)
def test_every_missing_file_is_named_with_its_origin(world: Path, gone: str) -> None:
    path = next((world / "workspace" / "weights").rglob(gone))
    hidden = path.rename(path.with_name("hidden"))
    try:
        with pytest.raises(EnvironmentProblem, match=gone) as raised:
            user_supplied(world, run=False)
        assert "Hugging Face hub" in str(raised.value)
    finally:
        hidden.rename(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("model.stage3=three.pth", r"model\.stage3 holds all of model\.stage1"),
        ("model.stage1=null", "model needs stage1 and stage2"),
    ],
)
def test_stages_are_chosen_in_the_recipe(change: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        load_recipe(NAME, [change])


def test_a_toy_model_is_made_once_and_the_same(tmp_path: Path) -> None:
    import shutil

    from harness.data.sources import make_data

    places = [f"paths.{name}={tmp_path / name}" for name in ("data", "weights", "stores", "results")]
    small = ["data.train_clips=6", "data.test_clips=2", "data.stage_clips=2", *places]
    recipe = load_recipe("tiny_videochat2_regate", small)
    with pytest.raises(EnvironmentProblem, match="made by `harness prepare`"):
        adapter_for(recipe, None).student()
    make_data(recipe.data, recipe.paths, recipe.seed)
    data = open_data(recipe.data, recipe.paths, recipe.seed)
    made = adapter_for(recipe, data)
    assert len(made.missing()) == 2
    made.prepare(Progress(quiet=True))
    assert made.missing() == []
    first, words = made.weights_fingerprint, made.processor().fingerprint
    shutil.rmtree(tmp_path / "weights")
    again = adapter_for(recipe, data)
    again.prepare(Progress(quiet=True))
    assert (again.weights_fingerprint, again.processor().fingerprint) == (first, words)
    for change, told in (("heads=7", r"model\.heads 7"), ("patch=24", r"patch 24"), ("vision_hidden=33", "odd")):
        wrong = adapter_for(load_recipe("tiny_videochat2_regate", [*small, f"model.{change}"]), data)
        with pytest.raises(RecipeError, match=told):
            wrong.prepare(Progress(quiet=True))
