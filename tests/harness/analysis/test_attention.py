"""Where models look: the weights against a decoder written out by hand, and the study of a pair's kept models."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from harness.analysis.attention.study import ARMS, ITEMS, answered, frames_of, read_attention, study
from harness.analysis.attention.weights import attended
from harness.analysis.choices.needed_words import BOTH, LOST
from harness.analysis.runs import Pair, load_runs
from harness.benchmarks import Benchmark
from harness.cli.report import look_at_attention
from harness.common.errors import RecipeError
from harness.common.progress import Progress
from harness.config.recipe import Recipe
from harness.data.loading.video import read_frames
from harness.data.sample import Question
from harness.evaluation.task import MultipleChoiceTask
from harness.models import adapter_for
from harness.report.figures.attention import difference, visual_part
from harness.report.figures.style import svg_of
from harness.report.pages.html import Pictures
from harness.report.pages.runs import attention
from regate.types import Kind
from tests.harness.worlds.run_builder import ABILITIES, build_run, finish

if TYPE_CHECKING:
    from harness.data.sample import Batch
    from tests.harness.worlds.choices import World

QUIET = Progress(quiet=True)
FLOAT32: dict[str, float] = {"rtol": 1e-6, "atol": 1e-8}
"""transformers' eager attention takes its angles and its softmax in float32, whatever the weights are."""
COLOURS = ("red", "green", "blue", "yellow")


@pytest.fixture(scope="module")
def adapter(choice_world: World) -> Any:
    return adapter_for(choice_world.recipe, None)


@pytest.fixture(scope="module")
def batch(choice_world: World, adapter: Any) -> Batch:
    """Two conversations of different length about clips."""
    processor, frames = adapter.processor(), choice_world.data.frames
    samples = sorted(choice_world.data.samples[:4], key=lambda sample: len(sample.turns[-1].text))
    return processor.collate([
        processor.encode(sample, [read_frames(media, frames=frames) for media in sample.media])
        for sample in (samples[0], samples[-1])
    ])  # fmt: skip


def turned(x_hSd: torch.Tensor, base: float) -> torch.Tensor:
    """Rotary embedding of places 0, 1, 2, ...: element i of the first half turns with that of the second."""
    half = x_hSd.shape[-1] // 2
    place_S = torch.arange(x_hSd.shape[1], dtype=torch.float64)
    angle_Sd = place_S[:, None] * base ** (-torch.arange(half, dtype=torch.float64) / half)
    first, second = x_hSd[..., :half], x_hSd[..., half:]
    return torch.cat((first * angle_Sd.cos() - second * angle_Sd.sin(),
                      second * angle_Sd.cos() + first * angle_Sd.sin()), dim=-1)  # fmt: skip


def by_hand(layer: Any, config: Any, hidden_SD: torch.Tensor) -> torch.Tensor:
    """Softmax of q k / sqrt(d) over the places up to the query's own: [heads, S, S]."""
    length, width = hidden_SD.shape[0], layer.self_attn.head_dim
    normed_SD = layer.input_layernorm(hidden_SD)
    base = config.rope_parameters["rope_theta"]
    q_hSd, k_hSd = (
        turned(projection(normed_SD).view(length, -1, width).transpose(0, 1), base)
        for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj)
    )
    k_hSd = k_hSd.repeat_interleave(len(q_hSd) // len(k_hSd), dim=0)
    later_SS = torch.ones(length, length, dtype=torch.bool).triu(1)
    return (q_hSd @ k_hSd.transpose(1, 2) / width**0.5).masked_fill(later_SS, -torch.inf).softmax(-1)


def test_the_weights_are_those_of_attention_written_out(adapter: Any, batch: Batch) -> None:
    model = adapter.student().double().eval()
    inputs = {
        name: value.double() if value.is_floating_point() else value
        for name, value in batch.model_inputs().items()
    }
    batch = replace(batch, inputs=inputs, colours={})
    looked = attended(adapter, model, batch)
    torch.testing.assert_close(looked.weight_BS.sum(dim=1), torch.ones(2, dtype=torch.float64))
    decoder = model.get_decoder()
    assert decoder.config._attn_implementation == "sdpa", "as it was before"
    assert not any(layer.self_attn._forward_hooks for layer in decoder.layers)
    with torch.inference_mode():
        hidden = model(**batch.inputs, output_hidden_states=True).hidden_states
        for row, kind_S in enumerate(batch.layout.kind_BS):
            length = int((kind_S != Kind.PAD).sum())
            queries = [place - 1 for place in range(length) if kind_S[place] == Kind.TARGET]
            visual = [place for place in range(length) if kind_S[place] == Kind.VISUAL]
            assert queries
            assert visual
            weights = [
                by_hand(layer, decoder.config, hidden[number][row, :length])[:, queries].mean(dim=(0, 1))
                for number, layer in enumerate(decoder.layers)
            ]
            whole_S = torch.stack(weights).mean(dim=0)
            torch.testing.assert_close(looked.weight_BS[row, :length], whole_S, **FLOAT32)
            assert float(looked.weight_BS[row, length:].sum()) == 0.0, "nothing looks at padding"
            parts = torch.stack([weight_S[visual].sum() for weight_S in weights])
            torch.testing.assert_close(looked.visual_BL[row], parts, **FLOAT32)
            even = [sum(place <= query for place in visual) / (query + 1) for query in queries]
            assert float(looked.uniform_B[row]) == pytest.approx(sum(even) / len(even), rel=1e-12)


@pytest.fixture(scope="module")
def task(choice_world: World) -> MultipleChoiceTask:
    """The builder's items, each about one of the clips."""
    colours = COLOURS[: ABILITIES["colour"]]
    clips = [question.media for question in choice_world.data.questions]
    options = tuple(f"The circle in this video is {colour}." for colour in colours)
    text = "<media:0> What colour is the circle?"
    questions = [
        Question(f"colour-{place:04d}", "colour", clips[place % len(clips)], text, options, place % len(colours))
        for place in range(120)
    ]
    return MultipleChoiceTask(Benchmark("shapes", "shapes", ("colour",)), {"colour": tuple(questions)})


@pytest.fixture(scope="module")
def pair(choice_world: World, adapter: Any, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A copy of the gated run beside a baseline, each with a kept model; the gated one's projector shows less."""
    results = tmp_path_factory.mktemp("attention")
    shutil.copytree(choice_world.run.folder, results / "runs" / choice_world.run.id)
    content = json.loads(choice_world.recipe.model_dump_json())
    content |= {"name": "whole", "gate": None, "paths": {**content["paths"], "results": str(results)}}
    baseline = Recipe.model_validate_json(json.dumps(content))
    finish(baseline, build_run(baseline, skill=1.2))
    runs = {run.name: run for run in load_runs(results)}
    for scale, run in ((1.0, runs["whole"]), (0.1, runs["choices"])):
        last = run.last("shapes")
        assert last is not None
        student = adapter.student()
        for parameter in student.model.projector.parameters():
            parameter.data *= scale
        adapter.save(student, run.folder / "checkpoints" / f"step-{last['step']:06d}")
    return Pair(runs["whole"], runs["choices"])


def test_both_kept_models_read_the_same_items(
    choice_world: World, adapter: Any, pair: Pair, task: MultipleChoiceTask
) -> None:
    """The parts are those that transformers' own outputs give, the cells of a map add up to them."""
    paths = choice_world.recipe.paths
    assert pair.gated is not None
    assert pair.baseline is not None
    assert study(pair, {"shapes": task}, paths, QUIET) is None
    file = pair.gated.folder / "attention.json"
    written = file.stat().st_mtime_ns
    assert study(pair, {"shapes": task}, paths, QUIET) is None
    assert file.stat().st_mtime_ns == written, "it is made once"
    looked = read_attention(pair.gated.folder)
    assert looked is not None
    found = looked["benchmarks"]["shapes"]
    questions = {question.key: question for question in task.tasks["colour"]}
    assert [item["key"] for item in found["items"]] == list(questions)[:ITEMS]

    processor = adapter.processor()
    for name, run in zip(ARMS, (pair.baseline, pair.gated), strict=True):
        (checkpoint,) = (run.folder / "checkpoints").iterdir()
        model = adapter.load(checkpoint).eval()
        model.set_attn_implementation("eager")
        item = found["items"][3]
        sample = answered("options", questions[item["key"]])
        row = processor.encode(sample, [read_frames(m, frames=choice_world.data.frames) for m in sample.media])
        with torch.inference_mode():
            shown = processor.collate([row])
            weights = model(**shown.model_inputs(), output_attentions=True).attentions
        queries = (row.kind_S == Kind.TARGET).nonzero().flatten() - 1
        visual_S = row.kind_S == Kind.VISUAL
        parts = [float(weight[0][:, queries][..., visual_S].sum(dim=-1).mean()) for weight in weights]
        assert item[name] == pytest.approx(parts, abs=2e-6)
    assert {shown["group"] for shown in found["maps"]} <= {BOTH, LOST}
    assert found["maps"]
    for shown in found["maps"]:
        item = next(item for item in found["items"] if item["key"] == shown["key"])
        (media,) = questions[shown["key"]].media
        frames = read_frames(media, frames=choice_world.data.frames)
        for name in ARMS:
            cells = torch.tensor(shown[name])
            assert cells.shape == (4, 2, 2)
            assert float(cells.sum()) == pytest.approx(sum(item[name]) / len(item[name]), abs=1e-5)
        assert torch.equal(torch.from_numpy(frames_of(shown["frames"]).copy()), frames[::2].permute(0, 2, 3, 1))


def test_the_figure_and_the_report_show_both(choice_world: World, pair: Pair, task: MultipleChoiceTask) -> None:
    assert pair.gated is not None
    assert study(pair, {"shapes": task}, choice_world.recipe.paths, QUIET) is None
    looked = read_attention(pair.gated.folder)
    assert looked is not None
    found = looked["benchmarks"]["shapes"]
    (section,) = attention(pair.gated)
    assert section.title == f"Where {pair.gated.id} looks"
    (pictures,) = section.blocks
    assert isinstance(pictures, Pictures)
    ((_, figure),) = pictures.figures
    svg = svg_of(figure)
    for shown in found["maps"]:
        for name in ARMS:
            assert f"{100 * sum(cell for frame in shown[name] for row in frame for cell in row):.0f} % in all" in svg
    change = difference(found["items"])
    assert f"{100 * change.value:+.1f} points" in svg
    baseline, gated = (sum(v.value for v in visual_part(found["items"], arm)) for arm in ARMS)
    assert change.value == pytest.approx((gated - baseline) / 2)
    assert change.low < change.value < change.high


def test_what_cannot_be_read_says_why(
    choice_world: World, pair: Pair, task: MultipleChoiceTask, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = choice_world.recipe.paths
    assert pair.gated is not None
    assert pair.baseline is not None
    assert "no baseline" in (study(Pair(None, pair.gated), {"shapes": task}, paths, QUIET) or "")
    assert "questions kept" in (study(pair, {}, paths, QUIET) or "")
    # The first world has no kept models.
    bare = replace(pair, gated=choice_world.run)
    assert "is not kept" in (study(bare, {"shapes": task}, paths, QUIET) or "")
    gone = tuple(
        replace(question, media=tuple(replace(media, path=media.path / "gone") for media in question.media))
        for question in task.tasks["colour"]
    )
    (pair.gated.folder / "attention.json").unlink(missing_ok=True)
    reason = study(pair, {"shapes": replace(task, tasks={"colour": gone})}, paths, QUIET)
    assert "clips are not here" in (reason or "")
    with pytest.raises(RecipeError, match="no run that is shown has a gate"):
        look_at_attention([pair.baseline], list(pair.runs), paths, QUIET)
    look_at_attention(pair.runs, list(pair.runs), paths, Progress())
    assert "its attention cannot be read: no benchmark of both arms" in capsys.readouterr().err
