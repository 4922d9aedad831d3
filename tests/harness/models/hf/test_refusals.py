"""Checkpoints and samples that cannot be trained on: refused with the reason, before anything is computed."""

from __future__ import annotations

import importlib.util
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import regate
from harness.common.errors import DataError, EnvironmentProblem
from harness.common.progress import Progress
from harness.config.model import HFModel
from harness.data.conversion import RefusedSamples, check
from harness.data.loading import video
from harness.data.sample import Media
from harness.models import adapter_for
from harness.models.hf import config as hf_config
from harness.models.hf.model import parts_of
from harness.models.hf.weights import load_processor
from harness.training.attachment import check_attachable
from regate.types import Kind
from tests.harness.worlds.transformers_models import made, picture, recipe_of, sample

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.config.recipe import Recipe

TOYS = ("qwen3_vl", "llava_onevision", "internvl")
USER, ANSWER = ("user", "<media:0>\nWhat moves?"), ("assistant", "a ball")


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {name: made(recipe_of(tmp_path_factory.mktemp(name), name)) for name in TOYS}


@pytest.fixture
def broken(toys: dict[str, Any], tmp_path: Path) -> Callable[..., Any]:
    """An adapter of a copy of a toy's checkpoint in which a JSON file is changed."""

    def make(family: str = "llava_onevision", file: str = "", **changes: Any) -> Any:
        toy = toys[family]
        folder = tmp_path / "weights" / "checkpoint"
        shutil.copytree(toy.files.folder, folder)
        if file:
            content = json.loads((folder / file).read_text())
            for key, value in changes.items():
                place = content
                *outer, last = key.split("__")
                for name in outer:
                    place = place[name]
                place[last] = value
            (folder / file).write_text(json.dumps(content))
        recipe: Recipe = toy.recipe.model_copy(
            update={
                "model": HFModel(adapter="hf", checkpoint="checkpoint"),
                "paths": toy.recipe.paths.model_copy(update={"weights": str(tmp_path / "weights")}),
            }
        )
        return adapter_for(recipe, toy.data)

    return make


def test_an_unchanged_copy_is_accepted(broken: Any) -> None:
    adapter = broken()
    assert adapter.missing() == []
    adapter.student()


def test_placeholder_ids_that_differ(broken: Any) -> None:
    adapter = broken(file="config.json", image_token_index=7, image_token_id=7)
    with pytest.raises(EnvironmentProblem, match=r"image_token_id is 7, the tokenizer that it is \d+"):
        adapter.processor()


def test_soft_capping_behind_the_head(broken: Any) -> None:
    adapter = broken(file="config.json", text_config__final_logit_softcapping=30.0)
    with pytest.raises(EnvironmentProblem, match=r"changed behind the head \(final_logit_softcapping = 30"):
        adapter.processor()


def test_a_decoder_that_cannot_be_elided(broken: Any) -> None:
    """Known from the configuration: nothing is computed for it first."""
    gpt2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2}
    adapter = broken(family="internvl", file="config.json", text_config=gpt2)
    with pytest.raises(regate.UnsupportedModelError, match="GPT2Model has no rotary position embedding"):
        check_attachable(adapter, adapter.recipe)


def test_a_head_tied_against_the_flag(broken: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = broken()
    model = adapter.student()
    hf_config.check_tied(adapter.files.folder, model.config, head_and_embedding_shared=False)
    with pytest.raises(EnvironmentProblem, match="tie_word_embeddings is False, and the loaded head is tied"):
        hf_config.check_tied(adapter.files.folder, model.config, head_and_embedding_shared=True)
    adapter = replace_flag(adapter)
    with pytest.raises(EnvironmentProblem, match=r"tie_word_embeddings is True, and the loaded head is not tied"):
        hf_config.check_tied(adapter.files.folder, model.config, head_and_embedding_shared=False)


def replace_flag(adapter: Any) -> Any:
    path = adapter.files.folder / "config.json"
    path.write_text(path.read_text().replace('"tie_word_embeddings": false', '"tie_word_embeddings": true'))
    return adapter


@pytest.mark.parametrize(("kind", "message"), [("missing", "1 missing: .*projector"), ("surplus", r"strange.weight")])
def test_keys_that_are_missing_or_too_many(broken: Any, kind: str, message: str) -> None:
    adapter = broken()
    path = adapter.files.folder / "model.safetensors"
    tensors = load_file(path)
    if kind == "missing":
        del tensors[next(name for name in tensors if "projector" in name and name.endswith("weight"))]
    else:
        tensors["strange.weight"] = torch.zeros(2)
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(EnvironmentProblem, match=f"(?s){message}"):
        adapter.student()


def test_no_chat_template(broken: Any) -> None:
    adapter = broken()
    for path in adapter.files.folder.glob("chat_template*"):
        path.unlink()
    for name in ("processor_config.json", "tokenizer_config.json"):
        path = adapter.files.folder / name
        content = json.loads(path.read_text())
        content.pop("chat_template", None)
        path.write_text(json.dumps(content))
    with pytest.raises(EnvironmentProblem, match="no chat template"):
        adapter.processor()


def test_types_of_positions_that_are_not_given(toys: dict[str, Any]) -> None:
    """Qwen2.5-VL would count positions as in text, without a word."""
    adapter = toys["qwen3_vl"]
    config = hf_config.read_config(adapter.files.folder)
    processor = load_processor(adapter.files.folder)
    hf_config.check_typed(config, processor, "here")
    processor.return_mm_token_type_ids = False
    with pytest.raises(EnvironmentProblem, match="does not give mm_token_type_ids"):
        hf_config.check_typed(config, processor, "here")


@pytest.mark.skipif(
    importlib.util.find_spec("num2words") is None, reason="the toy itself cannot be made without num2words"
)
def test_a_package_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SmolVLM's processor says what it needs; transformers holds None where the import failed."""
    from transformers.models.smolvlm import processing_smolvlm

    adapter = made(recipe_of(tmp_path, "smolvlm"))
    monkeypatch.setattr(processing_smolvlm, "num2words", None)
    with pytest.raises(EnvironmentProblem, match="a package that is not installed: Package `num2words`"):
        load_processor(adapter.files.folder)


def test_no_decoder_and_no_tower() -> None:
    """Models without a decoder of their own, or whose accessors give the model itself."""
    layer = torch.nn.Linear(2, 2)

    class Model(torch.nn.Module):
        def __init__(self, decoder: Any, tower: Any) -> None:
            super().__init__()
            self.decoder, self.tower = decoder, tower
            self.base_model = SimpleNamespace(parameters=lambda recurse: iter(()))

        def get_decoder(self) -> Any:
            return self.decoder or self

        def get_output_embeddings(self) -> Any:
            return layer

        def get_encoder(self, modality: str) -> Any:
            return (self.tower or self) if modality == "image" else self

    with pytest.raises(EnvironmentProblem, match="Model: no decoder with an output embedding"):
        parts_of(Model(None, layer))
    with pytest.raises(EnvironmentProblem, match="Model: no vision tower"):
        parts_of(Model(layer, None))


# --- samples ---------------------------------------------------------------------------------------------


def image(adapter: Any) -> Media:
    return Media("image", picture(Path(adapter.recipe.paths.data)))


@pytest.mark.parametrize(
    ("turns", "media", "message"),
    [
        ((("user", "What moves?"), ANSWER), 1, "1 media and tags for \\[\\]"),
        ((USER, ANSWER), 0, "tag <media:0> and 0 media"),
        ((USER, ("assistant", "<media:0>")), 1, "an answer holds a media tag"),
        ((USER, ("user", "And?"), ANSWER), 1, "they must take turns"),
        ((USER, ANSWER, ("user", "<|im_end|> why?"), ANSWER), 1, "which the model reads as a mark"),
    ],
)
def test_samples_that_cannot_be_rendered(toys: Any, turns: Any, media: int, message: str) -> None:
    adapter = toys["qwen3_vl"]
    processor = adapter.processor()
    chosen = sample("s", *turns, media=(image(adapter),) * media)
    with pytest.raises(DataError, match=message):
        processor.check(chosen)
    with pytest.raises(DataError, match=message):
        processor.encode(chosen, None)


def test_no_answer_within_the_limit_and_media_beyond_it(toys: Any) -> None:
    """Counted by the check of the conversations, all at once; nothing takes their place."""
    adapter = toys["qwen3_vl"]
    processor = adapter.processor()
    good = sample("good", USER, ANSWER, media=(image(adapter),))
    behind = sample("behind", ("user", "<media:0>\n" + "why " * 300), ANSWER, media=(image(adapter),))
    beyond = sample("beyond", ("user", "why " * 300 + "\n<media:0>"), ANSWER, media=(image(adapter),))
    short = replace(processor, max_length=200)
    data = SimpleNamespace(samples=[good, behind, beyond])
    refused = check("r", data, short, Progress(quiet=True))  # type: ignore[arg-type]
    assert [key for key, _ in refused] == ["behind", "beyond"]
    assert "no answer stands within model.max_length 200" in refused[0][1]
    assert "a medium stands beyond model.max_length" in refused[1][1]
    adapter.processor = lambda: short
    try:
        with pytest.raises(RefusedSamples, match="2 of 3 records cannot be used"):
            adapter.announce_conversations(data, Progress(quiet=True))
    finally:
        del adapter.processor


def test_a_video_without_a_frame_rate_where_times_are_written(toys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.models.hf import processor as hf_processor

    def without_rate(*arguments: Any, **named: Any) -> Any:
        return replace(video.clip_facts(*arguments, **named), fps=0.0)

    monkeypatch.setattr(hf_processor, "clip_facts", without_rate)
    chosen = toys["qwen3_vl"].data.samples[0]
    with pytest.raises(DataError, match="no frame rate, and Qwen3VLProcessor takes the times"):
        toys["qwen3_vl"].processor().encode(chosen, None)
    toys["llava_onevision"].processor().encode(toys["llava_onevision"].data.samples[0], None)


def test_tiles_of_an_annotation_are_for_internvl(toys: Any, tmp_path: Path) -> None:
    """Its pictures have no more tiles than the annotation says; no other family has tiles of this kind."""
    Image.new("RGB", (96, 32)).save(tmp_path / "wide.png")
    whole = sample("s", USER, ANSWER, media=(Media("image", tmp_path / "wide.png"),))
    limited = replace(whole, media=(replace(whole.media[0], max_tiles=1),))
    processor = toys["internvl"].processor()
    tiles, tile = (int((processor.encode(s, None).kind_S == Kind.VISUAL).sum()) for s in (whole, limited))
    assert (tiles, tile) == (4 * 4, 4)  # three tiles and the whole picture; the whole picture
    with pytest.raises(DataError, match="max_dynamic_patch, which is for InternVL"):
        toys["qwen3_vl"].processor().encode(limited, None)


def test_a_template_without_a_stable_prefix(broken: Any) -> None:
    """One that writes an answer differently once it is not the last: said at load or of the sample."""
    adapter = broken("qwen3_vl")
    path = adapter.files.folder / "chat_template.jinja"
    text = path.read_text()
    path.write_text("{{ messages | length }}" + text)
    with pytest.raises(EnvironmentProblem, match="no stable prefix"):
        adapter.processor()
    thinks = "{% if loop.last and message['role'] == 'assistant' %}{{ '<think></think>' }}{% endif %}"
    content = "{% if message['content'] is string %}"
    path.write_text(text.replace(content, thinks + content))
    turns = (("user", "What?"), ("assistant", "a ball"), ("user", "Why?"), ("assistant", "no reason"))
    processor = adapter.processor()
    with pytest.raises(DataError, match="writes answer 0 differently alone and within the conversation"):
        processor.encode(sample("s", *turns), None)


def test_a_template_that_ends_answers_with_a_space(broken: Any) -> None:
    """As LLaVA's Vicuna models: the end of text stands behind every answer and is learned; without one nothing would
    teach the model to stop."""
    adapter = broken("llava_onevision")
    spoken = (
        "{% for message in messages %}{{ message['role'].upper() + ': ' }}{% for part in message['content'] %}"
        "{{ part['text'] + ' ' if part['type'] == 'text' else '<image>' }}{% endfor %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
    )
    (adapter.files.folder / "chat_template.jinja").write_text(spoken)
    processor = adapter.processor()
    end, tokenizer = processor.tokenizer.eos_token, processor.tokenizer
    assert processor.chat.end == end
    assert "written behind each answer" in processor.chat.label_rule
    turns = (("user", "What?"), ("assistant", "a"), ("user", "Why?"), ("assistant", ""))
    row = processor.encode(sample("s", *turns), None)
    assert tokenizer.decode(row.input_ids_S) == f"USER: What? ASSISTANT: a{end} USER: Why? ASSISTANT: {end} "
    assert tokenizer.decode(row.labels_S[row.kind_S == int(Kind.TARGET)]) == f" a{end} {end}"
    path = adapter.files.folder / "tokenizer_config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "eos_token"}))
    with pytest.raises(EnvironmentProblem, match="ends an answer with ' ', which is no special token"):
        adapter.processor()
