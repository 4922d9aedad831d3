"""VideoLLaMA2 is an ordinary transformers model: Trainer, peft and generate, Mistral and CLIP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments

import regate
from harness.common.progress import Progress
from harness.data.loading.batches import load
from harness.data.sample import Sample, Turn
from harness.data.sources import open_data
from harness.evaluation.lmms.generation import Limits
from harness.evaluation.lmms.scorer import Request, Scorer
from harness.models import adapter_for
from harness.models.videollama2.config import VideoLLaMA2Config
from harness.models.videollama2.model import VideoLLaMA2ForConditionalGeneration
from tests.harness.worlds.videollama2 import FIXTURE, user_supplied, write_world

if TYPE_CHECKING:
    from pathlib import Path

    from harness.data.sample import Encoded


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Any:
    recipe = user_supplied(write_world(tmp_path_factory.mktemp("world")))
    made = adapter_for(recipe, open_data(recipe.data, recipe.paths, recipe.seed))
    made.prepare(Progress(quiet=True))
    return made


@pytest.fixture(scope="module")
def rows(adapter: Any) -> list[Encoded]:
    processor = adapter.processor()
    return [load(sample, adapter.data, processor) for sample in adapter.data.samples]


def test_the_trainer_trains_checkpoints_and_resumes(adapter: Any, rows: list[Encoded], tmp_path: Path) -> None:
    """Accumulation and activation checkpointing on; what it saves is an official folder and trains on from there."""
    processor = adapter.processor()

    def collate(items: list[Any]) -> dict[str, Any]:
        batch = processor.collate(items)
        return {**batch.model_inputs(), "labels": batch.layout.labels_BS}

    def trainer(steps: int) -> Trainer:
        arguments = TrainingArguments(
            output_dir=str(tmp_path), max_steps=steps, per_device_train_batch_size=2, gradient_accumulation_steps=2,
            learning_rate=1e-3, save_steps=1, logging_steps=1, report_to="none", use_cpu=True, seed=1,
            gradient_checkpointing=True, remove_unused_columns=False, dataloader_pin_memory=False, disable_tqdm=True,
        )  # fmt: skip
        return Trainer(adapter.student(), arguments, train_dataset=rows, data_collator=collate)  # type: ignore[arg-type]

    whole = trainer(2)
    whole.train()
    saved = load_file(tmp_path / "checkpoint-2" / "model.safetensors")
    assert saved.keys() == load_file(FIXTURE / "model.safetensors").keys()
    again = trainer(2)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    ours, theirs = (dict(made.model.named_parameters()) for made in (again, whole))
    start = adapter.student().state_dict()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name
        moved = not torch.equal(value, start[name])
        assert moved != name.startswith("model.vision_tower."), name


def test_peft_trains_adapters_under_elision(adapter: Any, rows: list[Encoded], tmp_path: Path) -> None:
    batch = adapter.processor().collate(rows)
    target = r".*language_model.*\.(q_proj|v_proj)"
    model = get_peft_model(adapter.student(), LoraConfig(r=4, target_modules=target))
    config = regate.GateConfig(keep_ratio=0.5, warmup_steps=0, dense_steps=0, selection="random")
    decision = regate.Gate(config, None).decide(batch.layout, batch.sample_ids_B, step=0)
    elide = regate.attach(model)
    with elide(decision):
        logits_NV, targets_N = adapter.forward(regate.ScoredLM(model), batch, decision)
    regate.token_loss(logits_NV, targets_N).mean().backward()
    trained = {name for name, value in model.named_parameters() if value.grad is not None}
    assert trained
    assert all("lora_" in name for name in trained)
    elide.remove()
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    again = PeftModel.from_pretrained(adapter.student(), tmp_path)
    with torch.no_grad():
        assert torch.equal(again.eval()(**batch.model_inputs()).logits, model.eval()(**batch.model_inputs()).logits)


def test_answers_of_the_evaluation_are_those_of_generate(adapter: Any) -> None:
    """Two rows with videos, in one batch and through the harness's own greedy decoding."""
    model, processor = adapter.student().eval(), adapter.processor()
    model.generation_config.eos_token_id = processor.end_id
    chosen = [sample for sample in adapter.data.samples if sample.media and sample.media[0].kind == "video"]
    limits = Limits(5, ("\n\n",))
    requests = [Request(sample.key, sample.media, "<media:0>\nWhat happens?", limits=limits) for sample in chosen]
    frames = {request.media[0]: load_frames(request) for request in requests}
    scorer = Scorer(adapter, model, lambda media: frames[media], batch_size=2)
    (found,) = scorer.answers([dict(enumerate(requests))])
    for request, (text, _) in zip(requests, [found[i] for i in range(len(requests))], strict=True):
        prompt = prompt_of(adapter, request, frames)
        made = model.generate(**prompt.model_inputs(), max_new_tokens=5, do_sample=False)
        ids = made[0, prompt.input_ids_BS.shape[1] :].tolist()
        assert processor.decode(ids).split("\n\n")[0] == text


def load_frames(request: Request) -> torch.Tensor:
    from harness.data.loading.video import read_frames

    return read_frames(request.media[0], frames=16)


def prompt_of(adapter: Any, request: Request, frames: dict[Any, torch.Tensor]) -> Any:
    processor = adapter.processor()
    question = Sample(1, request.key, request.media, (Turn("user", request.prompt),))
    return processor.collate([processor.encode_prompt(question, [frames[request.media[0]]])])


def test_beams_and_sampling_keep_the_frames_with_their_rows(adapter: Any, rows: list[Encoded]) -> None:
    batch = adapter.processor().collate([rows[0]])
    model = adapter.student().eval()
    made = model.generate(**batch.model_inputs(), max_new_tokens=4, do_sample=False, num_beams=1)
    again = model.generate(**batch.model_inputs(), max_new_tokens=4, do_sample=False, use_cache=False)
    assert torch.equal(made, again), "the cache changes nothing"


def small(tower: str, decoder: str) -> VideoLLaMA2Config:
    vision = {
        "model_type": f"{tower}_vision_model", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3,
        "num_attention_heads": 2, "image_size": 24, "patch_size": 6,
    }  # fmt: skip
    text = {
        "model_type": decoder, "vocab_size": 40, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1,
    }  # fmt: skip
    kind = "stc_connector" if tower == "clip" else "stc_connector_v35"
    return VideoLLaMA2Config(vision_config=vision, text_config=text, mm_projector_type=kind, num_frames=4)


@pytest.mark.parametrize("tower", ["siglip", "clip"])
def test_the_tower_stops_at_the_layer_that_is_read(tower: str) -> None:
    """Equal to transformers' own hidden_states[-2], CLIP's class token left out."""
    torch.manual_seed(2)
    model = VideoLLaMA2ForConditionalGeneration(small(tower, "qwen2")).eval()
    pixels = torch.randn(3, 3, 24, 24)
    with torch.no_grad():
        ours = model.model.vision_tower(pixels)
        hidden = model.model.vision_tower.vision_tower(pixels, output_hidden_states=True).hidden_states
    assert len(hidden) == 4
    theirs = hidden[-2][:, 1:] if tower == "clip" else hidden[-2]
    assert ours.shape == (3, 16, 16)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("tower", ["siglip", "clip"])
@pytest.mark.parametrize("decoder", ["qwen2", "mistral"])
def test_the_whole_family_is_saved_and_read(tower: str, decoder: str, tmp_path: Path) -> None:
    torch.manual_seed(4)
    model = VideoLLaMA2ForConditionalGeneration(small(tower, decoder)).eval()
    model.save_pretrained(tmp_path)
    again = VideoLLaMA2ForConditionalGeneration.from_pretrained(tmp_path)
    assert again.config.flat()["model_type"] == f"videollama2_{decoder}"
    ids = torch.tensor([[5, *[model.config.placeholder_token_id] * model.config.visual_tokens, 6, 7]])
    inputs = {"input_ids": ids, "pixel_values": torch.randn(1, 4, 3, 24, 24)}
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, again.eval()(**inputs).logits)
    names = load_file(tmp_path / "model.safetensors")
    assert "model.embed_tokens.weight" in names
    assert any(name.startswith("model.vision_tower.vision_tower.vision_model.encoder.layers.0.") for name in names)


def test_inputs_that_do_not_fit_are_refused() -> None:
    model = VideoLLaMA2ForConditionalGeneration(small("siglip", "qwen2")).eval()
    marks = [model.config.placeholder_token_id] * model.config.visual_tokens
    clip = torch.zeros(1, 4, 3, 24, 24)
    with pytest.raises(ValueError, match="8 visual placeholders in input_ids but no pixel_values"):
        model(input_ids=torch.tensor([[5, *marks]]))
    with pytest.raises(ValueError, match="7 visual placeholders in input_ids but 8 visual tokens"):
        model(input_ids=torch.tensor([[5, *marks[1:]]]), pixel_values=clip)
    with pytest.raises(ValueError, match=r"3 frames for clips of \[3\]: each has 4, or is 1 image"):
        model(input_ids=torch.tensor([[5, *marks]]), pixel_values=clip[:, :3])
    with pytest.raises(ValueError, match="exactly one"):
        model(pixel_values=clip)
