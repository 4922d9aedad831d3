"""What every model family promises the training loop, for each that can be built here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

import regate
from harness.analysis.attention.weights import attended
from harness.common.errors import EnvironmentProblem, RecipeError
from harness.common.progress import Progress
from harness.config.model import (
    CHECKPOINTS,
    SECTIONS,
    HFModel,
    TinyHFModel,
    TinyVideoChat2Model,
    TinyVideoLLaMA2Model,
    VideoChat2Model,
    VideoLLaMA2Model,
)
from harness.config.weight_files import missing_weights
from harness.data.loading.video import read_frames
from harness.data.sources import make_data, open_data
from harness.models import MODELS, adapter_for
from harness.training.attachment import check_attachable
from regate.types import IGNORE, Kind, TokenCounts
from tests.harness.worlds.tiny import tiny_recipe

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.config.model import ModelSection
    from harness.config.recipe import Recipe
    from harness.data.sample import Encoded
    from harness.models.adapter import Adapter


def toy_videollama2(folder: Path) -> Recipe:
    """VideoLLaMA2's own classes on the clips of the tiny recipe."""
    model = TinyVideoLLaMA2Model(adapter="tiny_videollama2", hidden=32, tower_layers=2)
    return tiny_recipe(folder).model_copy(update={"model": model})


def toy_videochat2(folder: Path) -> Recipe:
    """VideoChat2's own classes on the clips of the tiny recipe."""
    model = TinyVideoChat2Model(adapter="tiny_videochat2", hidden=32, vocabulary=640)
    return tiny_recipe(folder).model_copy(update={"model": model})


def toy_hf(folder: Path, family: str = "internvl") -> Recipe:
    """A family of transformers on the clips of the tiny recipe."""
    model = TinyHFModel.model_validate({"adapter": "tiny_hf", "family": family, "hidden": 32, "heads": 2})
    return tiny_recipe(folder).model_copy(update={"model": model})


BUILDABLE: dict[str, Callable[[Path], Recipe]] = {
    "tiny": tiny_recipe,
    "tiny_hf": toy_hf,
    "tiny_videochat2": toy_videochat2,
    "tiny_videollama2": toy_videollama2,
}
"""Families whose weights can be made here, and a recipe that a test can pay for."""
USER_SUPPLIED: dict[str, Any] = {
    "hf": HFModel(adapter="hf", checkpoint="qwen2_5_vl_7b"),
    "videollama2": VideoLLaMA2Model(
        adapter="videollama2", language_model="qwen2", vision_tower="siglip", projector="base/mm_projector.bin"
    ),
    "videochat2": VideoChat2Model(adapter="videochat2", language_model="mistral", stage1="one", stage2="two.pth"),
}
"""Families whose weights the user supplies."""
GATE = regate.GateConfig()
LAST = TinyVideoChat2Model.model_fields["qformer_layers"].default - 1


@pytest.fixture(scope="module", params=sorted(BUILDABLE))
def adapter(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Adapter:
    recipe = BUILDABLE[request.param](tmp_path_factory.mktemp(request.param))
    make_data(recipe.data, recipe.paths, recipe.seed)
    adapter = adapter_for(recipe, open_data(recipe.data, recipe.paths, recipe.seed))
    assert adapter.name == request.param
    assert adapter.missing()
    adapter.prepare(Progress(quiet=True))
    assert adapter.missing() == []
    return adapter


def test_the_outline_is_the_student_without_weights(adapter: Any) -> None:
    """Same names and shapes, but for LoRA, and it is elided like it: what a training would refuse is known before."""
    outline, student = adapter.outline(), adapter.student()
    assert {parameter.device.type for parameter in outline.parameters()} == {"meta"}
    trained = {name.replace(".base_layer", ""): parameter for name, parameter in student.named_parameters()}
    shapes = {name.replace("base_model.model.", ""): p.shape for name, p in trained.items() if "lora_" not in name}
    assert {name: p.shape for name, p in outline.named_parameters()} == shapes
    check_attachable(adapter, adapter.recipe)
    for key in ("from_layer", "deep"):
        too_many = replace(GATE, **{key: 40})
        with pytest.raises(regate.ConfigError, match=rf"{key}.* 40"):
            check_attachable(adapter, adapter.recipe.model_copy(update={"gate": too_many}))


def test_visual_positions_are_cells_of_grids_or_elision_of_them_is_refused(adapter: Any) -> None:
    gate = replace(GATE, warmup_steps=0, dense_steps=0, keep_ratio=1.0, visual=regate.VisualConfig(0.25, "random"))
    recipe = adapter.recipe.model_copy(update={"gate": gate})
    if not adapter.tells_grids:
        with pytest.raises(RecipeError, match=r"gate\.visual elides cells"):
            check_attachable(adapter, recipe)
        return
    check_attachable(adapter, recipe)
    batch = adapter.processor().collate(rows(adapter))
    decision = regate.Gate(replace(gate, selection="random"), None).decide(batch.layout, batch.sample_ids_B, step=0)
    visual_B = (batch.layout.kind_BS == Kind.VISUAL).sum(dim=1)
    kept_B = decision.visual.kept_BS.sum(dim=1)
    assert (visual_B > 0).any()
    assert ((kept_B <= visual_B / 4 + 1) & (kept_B >= visual_B / 4)).all()


PICTURES = {
    "diverse": regate.VisualConfig(0.25, "diverse"),
    "merge": regate.VisualConfig(0.25, "merge"),
    "temporal": regate.VisualConfig(0.475, "temporal"),
    "attention": regate.VisualConfig(0.25, "attention", 1),
    "none": regate.VisualConfig(0.0, "random"),
}


@pytest.mark.parametrize("how", sorted(PICTURES))
def test_cells_that_stay_by_what_they_show_reach_every_family(adapter: Any, how: str) -> None:
    """The last layer gets as many positions as were said, and the logits do not depend on the arrangement of rows."""
    gate = replace(GATE, warmup_steps=0, dense_steps=0, keep_ratio=1.0, selection="random", visual=PICTURES[how])
    if not adapter.tells_grids:
        with pytest.raises(RecipeError, match=r"gate\.visual elides cells"):
            check_attachable(adapter, adapter.recipe.model_copy(update={"gate": gate}))
        return
    student = adapter.student().eval()
    batch = adapter.processor().collate(rows(adapter))
    decision = regate.Gate(gate, None).decide(batch.layout, batch.sample_ids_B, step=0)
    seen: list[int] = []
    layer = student.get_decoder().layers[-1]
    layer.self_attn.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["hidden_states"].shape[1]), with_kwargs=True
    )
    logits = []
    for arranged in ({"rows": "packed", "outputs": "predictors"}, {"rows": "packed"}, {}):
        if how == "attention" and not arranged:
            continue  # packed rows alone know it
        elide = regate.attach(student, **arranged)  # type: ignore[arg-type]
        with torch.no_grad(), elide(decision):
            logits.append(adapter.forward(regate.ScoredLM(student), batch, decision)[0])
        elide.remove()
        torch.testing.assert_close(logits[-1], logits[0], rtol=1e-4, atol=1e-4)
    assert seen[0] == decision.counts.active < decision.counts.valid


def test_where_every_family_looks_can_be_read(adapter: Any) -> None:
    student = adapter.student().eval()
    batch = adapter.processor().collate(rows(adapter, 2))
    looked = attended(adapter, student, batch)
    layout, layers = batch.layout, len(student.get_decoder().layers)
    assert looked.visual_BL.shape == (2, layers)
    torch.testing.assert_close(looked.weight_BS.sum(dim=1), torch.ones(2, dtype=torch.float64))
    assert float(looked.weight_BS[~layout.valid_BS].sum()) == 0.0
    visual_B = (looked.weight_BS * (layout.kind_BS == Kind.VISUAL)).sum(dim=1)
    torch.testing.assert_close(looked.visual_BL.mean(dim=1), visual_B)
    assert ((visual_B > 0) & (visual_B < 1)).all()
    assert (layout.grids is not None) is adapter.tells_grids


def test_single_layers_that_compute_a_part_reach_every_family(adapter: Any) -> None:
    """Packed rows are Algorithm 1 with a mask for each layer."""
    gate = replace(GATE, warmup_steps=0, dense_steps=0, selection="random", layer_keep=0.5)
    student = adapter.student().eval()
    batch = adapter.processor().collate(rows(adapter, 2))
    decision = regate.Gate(gate, None).decide(batch.layout, batch.sample_ids_B, step=0)
    logits = []
    for arranged in ({"rows": "packed", "outputs": "predictors"}, {"execution": "layerwise"}):
        elide = regate.attach(student, **arranged)  # type: ignore[arg-type]
        if len(student.get_decoder().layers) < 3:
            with pytest.raises(regate.ConfigError, match="first and the last layer whole"):
                elide.check(gate)
            elide.remove()
            return
        with torch.no_grad(), elide(decision):
            logits.append(adapter.forward(regate.ScoredLM(student), batch, decision)[0])
        elide.remove()
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-4, atol=1e-4)


def rows(adapter: Any, count: int = 4, *, media: bool = True) -> list[Encoded]:
    processor = adapter.processor()
    frames = adapter.data.frames
    return [
        processor.encode(sample, [read_frames(m, frames=frames) for m in sample.media] if media else None)
        for sample in adapter.data.samples[:count]
    ]


def dense(adapter: Adapter, batch: Any) -> regate.Decision:
    return regate.DenseGate().decide(batch.layout, batch.sample_ids_B, step=0)


def test_every_family_is_buildable_or_says_what_is_missing() -> None:
    assert set(MODELS) == set(BUILDABLE) | set(USER_SUPPLIED) == set(SECTIONS)
    assert {name for name, section in SECTIONS.items() if section.generated} == set(BUILDABLE)
    # A section that is generated may take weights that are given, too.
    supplied = {name for name, section in SECTIONS.items() if section.weight_files and not section.generated}
    assert supplied == set(USER_SUPPLIED)


def test_processor_is_deterministic_and_survives_a_new_adapter(adapter: Any) -> None:
    other = adapter_for(adapter.recipe, adapter.data)
    assert other.processor().fingerprint == adapter.processor().fingerprint
    for row, again in zip(rows(adapter), rows(other), strict=True):
        assert torch.equal(row.input_ids_S, again.input_ids_S)
        assert torch.equal(row.labels_S, again.labels_S)
        assert torch.equal(row.pixels, again.pixels)  # type: ignore[arg-type]


def test_text_only_view_has_the_layout_of_the_full_one(adapter: Any) -> None:
    for full, text in zip(rows(adapter), rows(adapter, media=False), strict=True):
        for name in ("input_ids_S", "labels_S", "kind_S", "ordinal_S"):
            assert torch.equal(getattr(full, name), getattr(text, name)), name
        assert text.pixels is None
        assert Kind.VISUAL in full.kind_S.tolist()
        assert bool((full.input_ids_S[full.kind_S == Kind.VISUAL] == adapter.processor().placeholder_id).all())


def test_layout_of_a_batch_is_consistent(adapter: Any) -> None:
    batch = adapter.processor().collate(rows(adapter))
    layout = batch.layout
    counts: TokenCounts = dense(adapter, batch).counts
    counts.check()
    assert counts.target > 0
    assert counts.special > 0
    assert bool(((layout.labels_BS != IGNORE) == layout.target_BS).all())
    for ordinal_S, target_S in zip(layout.ordinal_BS, layout.target_BS, strict=True):
        assert ordinal_S[target_S].tolist() == list(range(int(target_S.sum())))
    assert not bool(layout.target_BS[:, 0].any()), "the first position has no predictor"


def test_student_trains_what_the_recipe_trains(adapter: Any) -> None:
    student = adapter.student().train()
    batch = adapter.processor().collate(rows(adapter))
    logits_NV, targets_N = adapter.forward(regate.ScoredLM(student), batch, dense(adapter, batch))
    assert logits_NV.shape[0] == targets_N.shape[0] == int(batch.layout.target_BS.sum())
    regate.token_loss(logits_NV, targets_N).mean().backward()
    trained = {name for name, p in student.named_parameters() if p.requires_grad}
    reached = {name for name, p in student.named_parameters() if p.grad is not None}
    moved = {name for name, p in student.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert reached == trained
    still = trained - moved
    # An adapter's second factor starts at zero, so its first one waits a step; the last layer's text is not read.
    assert all("lora_A" in name or f"qformer.encoder.layer.{LAST}." in name for name in still), still
    assert any("projector" in name for name in trained)
    assert any("language_model" in name for name in trained)
    assert not any("vision_tower" in name for name in trained)


def test_text_alone_reaches_everything_that_is_trained(adapter: Any) -> None:
    """Processes that share gradients or weights call the same modules, whatever stands in their rows."""
    sample = adapter.data.samples[0]
    turns = tuple(replace(turn, text=turn.text.replace("<media:0>", "").strip()) for turn in sample.turns)
    row = adapter.processor().encode(replace(sample, media=(), turns=turns, spans=()), [])
    assert Kind.VISUAL not in row.kind_S.tolist()
    student = adapter.student().train()
    batch = adapter.processor().collate([row])
    logits_NV, targets_N = adapter.forward(regate.ScoredLM(student), batch, dense(adapter, batch))
    regate.token_loss(logits_NV, targets_N).mean().backward()
    assert [name for name, p in student.named_parameters() if p.requires_grad and p.grad is None] == []


def test_forward_scores_what_the_plain_model_says(adapter: Any) -> None:
    student = adapter.student().eval()
    batch = adapter.processor().collate(rows(adapter))
    with torch.no_grad():
        logits_NV, targets_N = adapter.forward(regate.ScoredLM(student), batch, dense(adapter, batch))
        whole_BSV = student(**batch.model_inputs()).logits
    target_BS = batch.layout.target_BS
    assert torch.equal(targets_N, batch.layout.labels_BS[target_BS])
    torch.testing.assert_close(logits_NV, whole_BSV[:, :-1][target_BS[:, 1:]])


def test_pixels_travel_as_bytes_and_are_what_the_model_reads(adapter: Any) -> None:
    student = adapter.student().eval()
    batch = adapter.processor().collate(rows(adapter))
    (name,) = batch.colours
    assert batch.inputs[name].dtype == torch.uint8
    read = batch.model_inputs()
    assert read[name].dtype == torch.float32
    assert read[name].shape == batch.inputs[name].shape
    assert {key: value for key, value in read.items() if key != name}.keys() == batch.inputs.keys() - {name}
    with torch.no_grad():
        looked_up, given = (
            adapter.forward(regate.ScoredLM(student), part, dense(adapter, part))[0]
            for part in (batch, replace(batch, inputs=read, colours={}))
        )
    assert torch.equal(looked_up, given)


def test_elision_attaches_and_computes_fewer_positions(adapter: Any) -> None:
    student = adapter.student().eval()
    batch = adapter.processor().collate(rows(adapter))
    config = regate.GateConfig(keep_ratio=0.5, warmup_steps=0, dense_steps=0, selection="random")
    decision = regate.Gate(config, None).decide(batch.layout, batch.sample_ids_B, step=0)
    assert decision.elides
    seen: list[int] = []
    elide = regate.attach(student)
    layer = student.get_decoder().layers[0]
    layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    with torch.no_grad(), elide(decision):
        logits_NV, targets_N = adapter.forward(regate.ScoredLM(student), batch, decision)
    assert len(logits_NV) == len(targets_N) == decision.counts.scored
    assert seen == [int(decision.active_BS.sum(dim=1).max())]
    assert seen[0] < batch.layout.kind_BS.shape[1]


@pytest.mark.parametrize("sparse", [False, True])
def test_packed_rows_compute_the_active_positions_alone(adapter: Any, sparse: bool) -> None:
    """What the loop trains on: the logits of padded rows, no padding, and the last layer where it is read."""
    student = adapter.student().eval()
    batch = adapter.processor().collate(rows(adapter))
    config = regate.GateConfig(warmup_steps=0, dense_steps=0, selection="random")
    gate = regate.Gate(config, None) if sparse else regate.DenseGate()
    decision = gate.decide(batch.layout, batch.sample_ids_B, step=0)
    seen: list[int] = []
    student.get_decoder().layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[:2].numel()))
    logits = []
    for attach in ({}, {"rows": "packed", "outputs": "predictors"}):
        elide = regate.attach(student, **attach)  # type: ignore[arg-type]
        with torch.no_grad(), elide(decision):
            logits.append(adapter.forward(regate.ScoredLM(student), batch, decision)[0])
        elide.remove()
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-4, atol=1e-4)
    assert seen[1] == decision.counts.active < seen[0]


def test_teacher_is_frozen_and_reads_the_student_s_tokens(adapter: Any) -> None:
    teacher = adapter.teacher()
    assert not teacher.training
    assert not any(p.requires_grad for p in teacher.parameters())
    batch = adapter.processor().collate(rows(adapter, media=False))
    shape = adapter.shape()
    assert "pixel_values" not in batch.inputs
    visual_BS = batch.layout.kind_BS == Kind.VISUAL
    ids_BS = batch.input_ids_BS.masked_fill(visual_BS, 0)  # a placeholder may lie outside the vocabulary
    assert int(ids_BS.max()) < teacher.config.vocab_size == shape.vocabulary
    mask_BS = (batch.inputs["attention_mask"].bool() & ~visual_BS).long()
    with torch.no_grad():
        logits_BSV = teacher(input_ids=ids_BS, attention_mask=mask_BS).logits
    assert bool(torch.isfinite(logits_BSV[batch.layout.target_BS]).all())


def test_checkpoint_round_trip(adapter: Any, tmp_path: Path) -> None:
    student = adapter.student().eval()
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.requires_grad:  # what is frozen need not be in a checkpoint
                parameter.add_(0.01)
    adapter.save(student, tmp_path)
    loaded = adapter.load(tmp_path).eval()
    inputs = adapter.processor().collate(rows(adapter)).model_inputs()
    with torch.no_grad():
        assert torch.equal(student(**inputs).logits, loaded(**inputs).logits)
    assert list(tmp_path.glob("*.safetensors"))
    assert (tmp_path / "config.json").is_file()
    assert (tmp_path / "tokenizer.json").is_file()


def test_generation_from_a_prompt(adapter: Any) -> None:
    student = adapter.student().eval()
    processor, sample = adapter.processor(), adapter.data.samples[0]
    frames = [read_frames(media, frames=adapter.data.frames) for media in sample.media]
    prompt = processor.collate([processor.encode_prompt(sample, frames)])
    generated = student.generate(**prompt.model_inputs(), max_new_tokens=3, do_sample=False)
    assert torch.equal(generated[:, : prompt.input_ids_BS.shape[1]], prompt.input_ids_BS)
    assert generated.shape[1] > prompt.input_ids_BS.shape[1]


def test_shape_is_that_of_the_decoder(adapter: Any) -> None:
    shape, decoder = adapter.shape(), adapter.student().get_decoder()
    layer = decoder.layers[0]
    assert shape.layers == len(decoder.layers)
    assert layer.self_attn.q_proj.weight.shape == (shape.heads * shape.head_dim, shape.hidden)
    assert layer.self_attn.k_proj.weight.shape == (shape.kv_heads * shape.head_dim, shape.hidden)
    assert layer.mlp.up_proj.weight.shape == (shape.intermediate, shape.hidden)
    assert decoder.get_input_embeddings().weight.shape == (shape.vocabulary, shape.hidden)
    assert shape.vision_flops > 0


def test_fingerprints_follow_the_weights(adapter: Any) -> None:
    assert adapter.weights_fingerprint != adapter.teacher_fingerprint
    other = adapter_for(adapter.recipe, None)
    assert other.weights_fingerprint == adapter.weights_fingerprint
    assert other.teacher_fingerprint == adapter.teacher_fingerprint


# --- weights that the user supplies ------------------------------------------------------------------------


def user_supplied(name: str, folder: Path) -> Recipe:
    return tiny_recipe(folder).model_copy(update={"model": USER_SUPPLIED[name]})


@pytest.mark.parametrize("name", sorted(USER_SUPPLIED))
def test_every_missing_file_is_named_with_its_origin(name: str, tmp_path: Path) -> None:
    recipe = user_supplied(name, tmp_path)
    lines = missing_weights(recipe)
    needs = [need for need in SECTIONS[name].weight_files if getattr(recipe.model, need.field) is not None]
    assert len(lines) == sum(len(need.files) for need in needs)
    for need in needs:
        own_lines = [line for line in lines if line.endswith(f"named by model.{need.field}")]
        assert len(own_lines) == len(need.files)
        assert all(need.hub_id in line and need.licence in line for line in own_lines)
        assert all(line.startswith(str(Path(recipe.paths.weights))) for line in own_lines)
    with pytest.raises(EnvironmentProblem) as caught:
        adapter_for(recipe, None).student()
    assert all(line in str(caught.value) for line in lines)


@pytest.mark.parametrize("name", sorted(USER_SUPPLIED))
def test_files_that_are_there_are_not_asked_for(name: str, tmp_path: Path) -> None:
    recipe = user_supplied(name, tmp_path)
    while lines := missing_weights(recipe):
        for line in lines:
            file = Path(line.split(": from ")[0])
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
    assert adapter_for(recipe, None).missing() == []


def test_shards_that_an_index_names_are_asked_for(tmp_path: Path) -> None:
    recipe = user_supplied("videochat2", tmp_path)
    folder = Path(recipe.paths.weights) / "mistral"
    folder.mkdir(parents=True)
    (folder / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}'
    )
    (folder / "1.safetensors").touch()
    lines = [line for line in missing_weights(recipe) if "safetensors" in line]
    assert [Path(line.split(":")[0]).name for line in lines] == ["2.safetensors"]


def test_a_field_without_a_value_needs_nothing(tmp_path: Path) -> None:
    model = USER_SUPPLIED["videollama2"].model_copy(update={"projector": None})
    recipe = tiny_recipe(tmp_path).model_copy(update={"model": model})
    assert not any("projector" in line for line in missing_weights(recipe))


@pytest.mark.parametrize("section", [*SECTIONS.values(), *CHECKPOINTS.values()], ids=lambda section: section.__name__)
def test_requirements_name_keys_of_their_section(section: type[ModelSection]) -> None:
    keys = set(section.model_fields)
    assert {need.field for need in section.weight_files} <= keys
    assert set(section.weights_beside) <= keys
