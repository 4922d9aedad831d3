"""InternVL through the adapter: a published checkpoint from the recipe on, and conversations beside the fixture's."""

from __future__ import annotations

import json
import shutil
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import Qwen2_5_VLConfig

import regate
from harness.common.errors import DataError, EnvironmentProblem
from harness.config.data import InternVLData
from harness.config.model import HFModel
from harness.config.recipe import Recipe
from harness.data.loading.epoch_view import EpochView, clips
from harness.data.sample import Media, Sample, SamplingPolicy, Turn
from harness.data.sources import make_data, open_data
from harness.data.sources.internvl import InternVLSource
from harness.models import adapter_for
from harness.models.hf.internvl.image_processing import tile_grid, tiles_of
from regate.types import IGNORE, Kind
from tests.harness.worlds.tiny import tiny_recipe
from tests.harness.worlds.transformers_models import EVERY_PART, encoded, gradients, loss_of, samples

FIXTURE = Path(__file__).parents[3] / "fixtures" / "internvl"


def adapter_of(folder: Path, **model: Any) -> Any:
    """The published tiny checkpoint on the clips of the tiny recipe."""
    section = {"adapter": "hf", "checkpoint": "internvl", **EVERY_PART, **model}
    recipe = tiny_recipe(folder).model_copy(update={"model": HFModel.model_validate(section)})
    if not (folder / "weights" / "internvl").is_dir():
        shutil.copytree(FIXTURE, folder / "weights" / "internvl")
    make_data(recipe.data, recipe.paths, recipe.seed)
    return adapter_for(recipe, open_data(recipe.data, recipe.paths, recipe.seed))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return adapter_of(tmp_path_factory.mktemp("internvl"))


def test_a_published_checkpoint_is_trained_and_saved_as_one_of_transformers(adapter: Any, tmp_path: Path) -> None:
    student = adapter.student().train()
    batch = adapter.processor().collate(encoded(adapter, samples(adapter)))
    decision = regate.DenseGate().decide(batch.layout, batch.sample_ids_B, step=0)
    loss_of(adapter, regate.ScoredLM(student), batch, decision).backward()
    assert all(p.grad is not None for p in student.parameters())
    adapter.save(student, tmp_path)
    loaded = adapter.load(tmp_path)
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in student.state_dict().items())
    assert adapter.teacher()(batch.input_ids_BS, batch.inputs["attention_mask"]).logits.isfinite().all()


def test_tiles_of_the_recipe(adapter: Any) -> None:
    other = adapter_of(Path(adapter.recipe.paths.data).parent, max_tiles=1, pixels="transformers")
    usual, fewer = adapter.processor(), other.processor()
    sample = talk(("user", "it?"), ("assistant", "a cat"), media=("image",))
    assert usual.tokens(sample) - fewer.tokens(sample) == 2 * usual.tiles.tokens
    assert len({fewer.fingerprint, usual.fingerprint}) == 2
    with pytest.raises(EnvironmentProblem, match=r"model\.max_tiles and .* for InternVL, and this is a qwen2_5_vl"):
        other._tiles(None, Qwen2_5_VLConfig())


def test_evaluations_read_the_official_frames(adapter: Any) -> None:
    assert adapter.frame_rule == "mvbench"
    section = HFModel.model_validate({"adapter": "hf", "checkpoint": "another"})
    absent = adapter_for(adapter.recipe.model_copy(update={"model": section}), None)
    assert absent.frame_rule == "spread"


def test_a_run_without_the_new_keys_keeps_its_identity() -> None:
    plain = HFModel.model_validate({"adapter": "hf", "checkpoint": "x"})
    assert not {"pixels", "max_tiles"} & plain.model_dump().keys()
    stated = HFModel.model_validate({"adapter": "hf", "checkpoint": "x", "pixels": "official", "max_tiles": 6})
    assert stated.model_dump()["max_tiles"] == 6
    assert stated.model_dump()["pixels"] == "official"


def talk(*turns: tuple[str, str], media: tuple[str, ...] = ()) -> Sample:
    files = tuple(Media(kind, FIXTURE / "media" / ("a.png" if kind == "image" else "frames_a")) for kind in media)  # type: ignore[arg-type]
    return Sample(7, "talk", files, tuple(Turn(role, text) for role, text in turns))  # type: ignore[arg-type]


def text_of(processor: Any, sample: Sample) -> str:
    text: str = processor.tokenizer.decode(processor.encode(sample, None).input_ids_S)
    return text.replace("<IMG_CONTEXT>", "").split("<|im_end|>\n", 1)[1]


def test_media_without_a_tag_come_before_the_first_question(adapter: Any) -> None:
    processor = adapter.processor()
    sample = talk(("user", "both?"), ("assistant", "a cat"), media=("image", "image"))
    assert text_of(processor, sample) == (
        "<|im_start|>user\n<img></img>\n<img></img>\nboth?<|im_end|>\n<|im_start|>assistant\na cat<|im_end|>\n"
    )
    own = talk(("system", "be kind"), ("user", "it?"), ("assistant", "a cat"), media=("image",))
    assert text_of(processor, own).startswith("<|im_start|>user\n<img></img>\nit?")


def test_lines_of_frames_end_with_a_line_break(adapter: Any) -> None:
    processor = adapter.processor()
    for question in ("<media:0>what?", "<media:0>\nwhat?"):
        sample = talk(("user", question), ("assistant", "a cat"), media=("video",))
        lines = [f"Frame-{number + 1}: <img></img>\n" for number in range(processor.frames)]
        assert "".join(lines) + "what?<|im_end|>" in text_of(processor, sample)
    last = talk(("user", "what?\n<media:0>"), ("assistant", "a cat"), media=("video",))
    assert f"Frame-{processor.frames}: <img></img><|im_end|>" in text_of(processor, last)


def test_every_position_has_its_kind(adapter: Any) -> None:
    processor = adapter.processor()
    row = processor.encode(talk(("user", "see <media:0>it"), ("assistant", "a cat"), media=("image",)), None)
    words = {
        kind: processor.tokenizer.decode(row.input_ids_S[row.kind_S == kind])
        for kind in (Kind.PROMPT, Kind.TARGET, Kind.VISUAL)
    }
    assert words[Kind.PROMPT] == "see it"
    assert words[Kind.TARGET] == "a cat<|im_end|>"
    assert set(words[Kind.VISUAL].split(">")) == {"<IMG_CONTEXT", ""}
    assert torch.equal(row.labels_S != IGNORE, row.kind_S == Kind.TARGET)


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (talk(("user", "a <media:1>"), ("assistant", "b"), media=("image", "image")), "2 media and tags for"),
        (talk(("user", "a <media:0>"), ("assistant", "b")), "0 media and tags for"),
        (talk(("user", "a <IMG_CONTEXT>"), ("assistant", "b")), "holds <IMG_CONTEXT>"),
        (talk(("user", "a"), ("assistant", "b <|im_end|>")), r"holds <\|im_end\|>"),
        (talk(("user", "a"), ("user", "b")), "they must take turns"),
        (talk(("user", "a"), ("assistant", "<media:0>"), media=("image",)), "an answer holds a media tag"),
        (talk(("assistant", "b"), media=("image",)), "they must take turns"),
    ],
)
def test_conversations_that_are_refused(adapter: Any, sample: Sample, message: str) -> None:
    with pytest.raises(DataError, match=message):
        adapter.processor().check(sample)


def test_a_training_may_draw_the_number_of_frames(adapter: Any) -> None:
    """In each epoch another number within the bounds, at other places; the targets and their ordinals stay."""
    processor = adapter.processor()
    sampling = SamplingPolicy("random", least=2)
    sample = adapter.data.samples[0]
    views = [EpochView(3, epoch) for epoch in range(12)]
    drawn = [clips(sample, sampling, view, frames=processor.frames, size=64) for view in views]
    counts = {len(clip) for (clip,) in drawn}
    assert min(counts) >= 2
    assert max(counts) <= processor.frames
    assert len(counts) > 2
    again = clips(sample, sampling, views[0], frames=processor.frames, size=64)
    assert torch.equal(again[0], drawn[0][0])
    whole = processor.encode(sample, None)
    for frames in drawn:
        row = processor.encode(sample, frames)
        assert row.pixels is not None
        assert len(row.pixels) == len(frames[0])
        assert int((row.kind_S == Kind.VISUAL).sum()) == len(frames[0]) * processor.tiles.tokens
        for ours, theirs in ((row.labels_S, whole.labels_S), (row.ordinal_S, whole.ordinal_S)):
            target_S, other_S = row.kind_S == Kind.TARGET, whole.kind_S == Kind.TARGET
            assert torch.equal(ours[target_S], theirs[other_S])
    with pytest.raises(DataError, match=r"a uint8 clip of 8 frames expected, found \(9, 3"):
        processor.encode(sample, [torch.zeros((9, 3, 8, 8), dtype=torch.uint8)])


def test_drawn_frames_of_the_recipe(adapter: Any) -> None:
    section = {"source": "internvl", "meta": "meta.json"}
    plain = InternVLData.model_validate(section)
    assert not {"frame_sampling", "least_frames"} & plain.model_dump().keys()
    drawn = InternVLData.model_validate({**section, "frame_sampling": "random", "least_frames": 8, "frames": 32})
    source = InternVLSource(drawn, adapter.recipe.paths, 0)
    assert source.sampling == SamplingPolicy("random", least=8)
    assert InternVLSource(plain, adapter.recipe.paths, 0).sampling == SamplingPolicy("middle")
    for wrong, message in (
        ({"least_frames": 8}, "least_frames is for frame_sampling random"),
        ({"frame_sampling": "random", "least_frames": 17}, "least_frames 17 is more than frames 16"),
    ):
        with pytest.raises(ValidationError, match=message):
            InternVLData.model_validate({**section, **wrong})
    other = adapter_for(adapter.recipe.model_copy(update={"data": drawn}), None)
    assert other.processor().tiles is not None
    with pytest.raises(EnvironmentProblem, match="the times of the frames stand in the text of qwen2_5_vl"):
        other._tiles(None, Qwen2_5_VLConfig())
    dropping = adapter.recipe.model_copy(update={"model": adapter.recipe.model.model_copy(update={"drop_path": 0.1})})
    with pytest.raises(EnvironmentProblem, match=r"model\.drop_path are for InternVL, and this is a qwen2_5_vl"):
        adapter_for(dropping, None)._tiles(None, Qwen2_5_VLConfig())


@pytest.mark.parametrize(
    ("gate", "message"),
    [({}, "the reference losses are computed once"), ({"candidates": "text"}, "a loss for each token by its place")],
)
def test_a_drawn_number_of_frames_is_refused_where_the_text_must_stay(
    adapter: Any, gate: dict[str, Any], message: str
) -> None:
    plain = adapter.recipe.model_dump(mode="json")
    drawn = {"source": "internvl", "meta": "meta.json", "frame_sampling": "random"}
    with pytest.raises(ValidationError, match=message):
        Recipe.model_validate_json(json.dumps({**plain, "data": {**drawn, "least_frames": 8}, "gate": gate}))
    for data, allowed in ((drawn, gate), ({**drawn, "least_frames": 8}, None), (drawn, {"selection": "random"})):
        Recipe.model_validate_json(json.dumps({**plain, "data": data, "gate": allowed}))


def test_a_row_s_text_names_as_many_frames_as_were_drawn(adapter: Any) -> None:
    """Which is why the losses of the text with all frames are no losses of it."""
    processor, sample = adapter.processor(), adapter.data.samples[0]
    rows = [processor.encode(sample, [torch.zeros((count, 3, 8, 8), dtype=torch.uint8)]) for count in (2, 8)]
    prompts = [int((row.kind_S != Kind.VISUAL).sum()) for row in rows]
    assert prompts[0] < prompts[1] == int((processor.encode(sample, None).kind_S != Kind.VISUAL).sum())


def test_branches_of_the_tower_are_left_out_for_some_pictures_in_training(tmp_path: Path) -> None:
    """Each picture of the last layer is one of the four that the formula gives, and nothing is left out elsewhere."""
    trained = adapter_of(tmp_path, drop_path=0.5)
    model, plain = trained.student(), adapter_of(tmp_path).student()
    tower = model.get_encoder(modality="image")
    layer, rate = tower.encoder.layer[-1], 0.5
    x_BPD = torch.randn(1, 5, tower.config.hidden_size, generator=torch.Generator().manual_seed(1)).expand(64, -1, -1)

    def expected(attended: bool, thought: bool) -> torch.Tensor:
        branch = layer.lambda_1 * plain_layer.attention(plain_layer.layernorm_before(x_BPD))[0]
        hidden = x_BPD + attended * branch / (1 - rate)
        return hidden + thought * layer.lambda_2 * plain_layer.mlp(plain_layer.layernorm_after(hidden)) / (1 - rate)

    plain_layer = plain.get_encoder(modality="image").encoder.layer[-1]
    with torch.no_grad():
        assert torch.equal(layer(x_BPD), plain_layer(x_BPD)), "no training, no depth left out"
        layer.train()
        torch.manual_seed(3)
        out_BPD = layer(x_BPD)
        torch.manual_seed(3)
        assert torch.equal(layer(x_BPD), out_BPD)
        pairs = product((False, True), repeat=2)
        seen = [torch.isclose(out_BPD, expected(*kept), atol=1e-5).all(dim=(1, 2)) for kept in pairs]
    assert torch.stack(seen).sum(dim=0).tolist() == [1] * 64
    assert all(8 <= int(some.sum()) <= 26 for some in seen)
    first = tower.encoder.layer[0].train()
    assert torch.equal(first(x_BPD), plain.get_encoder(modality="image").encoder.layer[0].train()(x_BPD))


def test_what_is_left_out_stays_out_where_layers_are_computed_again(tmp_path: Path) -> None:
    trained = adapter_of(tmp_path, drop_path=0.5)
    model = trained.student().train()
    batch = trained.processor().collate(encoded(trained, samples(trained)[:2]))
    losses, grads = [], []
    for again in (False, True):
        if again:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(7)
        decision = regate.DenseGate().decide(batch.layout, batch.sample_ids_B, step=0)
        loss = loss_of(trained, regate.ScoredLM(model), batch, decision)
        model.zero_grad()
        loss.backward()
        losses.append(loss.item())
        grads.append(gradients(model))
    assert losses[0] == losses[1]
    assert all(torch.allclose(grads[0][name], grads[1][name], atol=1e-6) for name in grads[0])


def test_several_pictures_share_the_tiles(adapter: Any) -> None:
    tiles = adapter.processor().tiles
    assert tiles.most == 6
    assert [tiles.count(480, 640, pictures) for pictures in (1, 2, 3, 6, 20)] == [
        columns * rows + (columns * rows > 1)
        for columns, rows in (tile_grid(640, 480, tiles.size, 1, most) for most in (6, 3, 2, 1, 1))
    ]


def test_grids_follow_the_published_rule_for_every_shape() -> None:
    """Grids sorted by their number of tiles alone; those of one number never tie where it matters."""
    for most in (1, 2, 5, 12):
        sides = range(1, most + 1)
        grids = {(i, j) for n in sides for i in range(1, n + 1) for j in range(1, n + 1) if i * j <= most}
        for width, height in ((31, 40), (448, 448), (1000, 333), (125, 100), (2000, 800), (10, 997), (750, 200)):
            best, nearest = (1, 1), float("inf")
            for grid in sorted(grids, key=lambda grid: grid[0] * grid[1]):
                apart = abs(width / height - grid[0] / grid[1])
                if apart < nearest:
                    nearest, best = apart, grid
                elif apart == nearest and width * height > 0.5 * 448 * 448 * grid[0] * grid[1]:
                    best = grid
            assert tile_grid(width, height, 448, 1, most) == best


def test_a_processor_with_defaults_of_transformers_is_refused(adapter: Any) -> None:
    processor = adapter.processor().processor
    mean = processor.video_processor.image_mean
    processor.video_processor.image_mean = [0.48145466, 0.4578275, 0.40821073]
    with pytest.raises(EnvironmentProblem, match="its video_processor makes pictures of 56 x 56 pixels with mean"):
        tiles_of(processor, 16, "x", through=False)
    processor.video_processor.image_mean = mean
    with pytest.raises(EnvironmentProblem, match="counts 16 tokens a tile, its configuration 64"):
        tiles_of(processor, 64, "x", through=False)
