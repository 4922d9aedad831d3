"""What a run takes, against the loop's own formula, the record of a run, and figures worked out by hand."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from harness.cli import doctor
from harness.common.errors import EnvironmentProblem, RecipeError
from harness.config.load import load_recipe
from harness.config.paper import read_paper
from harness.config.recipe import INSTALL_DEEPSPEED
from harness.data.sources import make_data
from harness.models import MODELS
from harness.models.decoder_flops import LayerSpan, step_flops
from harness.plan import Planner, make_plan, render
from harness.plan.questions import DISAGREE, difference_figures
from harness.plan.work import (
    PAPER_USE,
    PEAK,
    assumed_lengths,
    dense_and_sparse,
    lengths_of,
    run_flops,
    sample_work,
    sparse_ratios,
)
from harness.training.launching.processes import check_engine
from regate.config import GateConfig
from regate.schedule import DualCycle

if TYPE_CHECKING:
    from harness.models.footprint import Footprint
    from harness.plan.figures import Costs, Figure

ROOT = Path(__file__).parents[3]
SHIPPED = ("tiny_regate", "tiny_baseline", "tiny_videochat2_regate", "tiny_videollama2_regate")
FULL = ("videollama2_baseline", "videollama2_regate", "videochat2_baseline", "videochat2_regate")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def footprint_of(name: str) -> Footprint:
    recipe = load_recipe(name)
    return MODELS[recipe.model.adapter].footprint(recipe)


def costs(name: str, *overrides: str) -> Costs:
    return Planner().costs(load_recipe(name, overrides))


def figures(costs: Costs, section: str) -> dict[str, Figure]:
    return {f"{figure.name} {figure.unit}".strip(): figure for figure in costs.figures[section]}


def test_plan_needs_no_torch_and_says_where_each_figure_is_from() -> None:
    script = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'accelerate', 'lmms_eval', 'mlflow', 'av'): sys.modules[name] = None\n"
        "import harness.cli.main\n"
        f"sys.argv = ['harness', 'plan', '--json', *{(*SHIPPED, *FULL)!r}]\n"
        "harness.cli.main.main()"
    )
    command, environment = [sys.executable, "-c", script], {"PYTHONPATH": str(ROOT), "PATH": ""}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    plans: list[dict[str, Any]] = json.loads(done.stdout)["plans"]
    assert [plan["name"] for plan in plans] == [*SHIPPED, *FULL]
    for plan in plans:
        for section, entries in plan["costs"]["figures"].items():
            for entry in entries:
                assert entry["basis"] in ("counted", "stated", "estimated"), (section, entry)
                assert entry["source"], (section, entry)
                assert 0 <= entry["low"] <= entry["high"], (section, entry)


@pytest.mark.parametrize("name", FULL)
def test_a_samples_work_is_that_of_the_loop(name: str) -> None:
    """The loop's formula knows one number for all that stands before the decoder, and no adapters of the head."""
    recipe = load_recipe(name)
    footprint = MODELS[recipe.model.adapter].footprint(recipe)
    layers = footprint.decoder.layers if recipe.train.gradient_checkpointing else 0
    work = sample_work(footprint, 900, 150, recomputed=layers, clips=1)
    fixed = sum(part.forward + part.backward + part.again for part in footprint.parts)
    loop = step_flops(footprint.decoder, [900], 150, recomputed=layers)
    assert work.total == pytest.approx(loop + fixed + 6 * 150 * footprint.head_adapters, rel=1e-12)
    limited = sample_work(footprint, 900, 150, recomputed=layers, clips=1, last_layer=150)
    loop = step_flops(footprint.decoder, [900], 150, recomputed=layers, last_layer=150)
    assert limited.total == pytest.approx(loop + fixed + 6 * 150 * footprint.head_adapters, rel=1e-12)
    assert limited.total < work.total


@pytest.mark.parametrize(
    ("overrides", "limited"),
    [
        ([], True),
        (["train.last_layer=all"], False),
        (["train.rows=padded"], False),
        (["gate.execution=layerwise"], False),
        (["gate.execution=loss_only"], True),
        (["gate.from_layer=0.5"], True),
        (["gate.from_layer=0.5", "train.last_layer=all"], False),
    ],
)
def test_a_run_is_told_to_cost_what_its_mean_sample_costs_in_the_loop(overrides: list[str], limited: bool) -> None:
    """Both arms compute the last layer where its output is read, unless the recipe has them compute all of it."""
    recipe = load_recipe("videollama2_regate", overrides)
    footprint = MODELS["videollama2"].footprint(recipe)
    lengths = replace(assumed_lengths(recipe, footprint, 280.0), visual=1352.0, prompt=60.0)
    dense, sparse = dense_and_sparse(recipe, footprint, lengths)
    layers, head = footprint.decoder.layers, 6 * footprint.head_adapters
    fixed = sum(part.forward + part.backward + part.again for part in footprint.parts)
    cost = partial(step_flops, footprint.decoder, recomputed=layers)
    assert dense.total == pytest.approx(cost([1692], 280, last_layer=280 if limited else None) + fixed + 280 * head)
    kept = 1692 if recipe.gate is not None and recipe.gate.execution == "loss_only" else 1552
    spans = None
    if recipe.gate is not None and recipe.gate.from_layer:
        lower, upper = 1692.0, 1552.0
        spans = [LayerSpan(layers // 2, lower, lower, lower * (lower + 1) / 2)]
        spans.append(LayerSpan(layers - layers // 2 - 1, upper, upper, upper * (upper + 1) / 2))
        spans.append(LayerSpan(1, upper, 140.0 if limited else upper, upper * (upper + 1) / 2))
    expected = cost([kept], 140, last_layer=140 if limited else None, spans=spans)
    assert sparse.total == pytest.approx(expected + fixed + 140 * head)


def test_the_work_of_a_run_that_was_done() -> None:
    """The ledger of the committed baseline added up its own steps; here its mean sample stands for all of them.

    The ledger counts the forward pass of the tiny model's projector only.
    """
    folder = next((ROOT / "results/evidence/tiny_claim/runs").glob("tiny_claim.baseline.seed0-*"))
    totals = json.loads((folder / "record.json").read_text())["totals"]
    recipe = load_recipe("tiny_baseline")
    footprint = MODELS["tiny"].footprint(recipe)
    samples, counts = totals["samples"], totals["counts"]
    work = sample_work(
        footprint, counts["valid"] / samples, counts["target"] / samples, recomputed=0, clips=1
    )
    projector = footprint.parts[1]
    assert samples * (work.total - projector.backward) == pytest.approx(totals["flops"], rel=0.005)


def test_the_paper_takes_seven_per_cent_of_its_gpus() -> None:
    """Its runs computed all of the last layer."""
    recipe = load_recipe("videollama2_baseline", ["train.last_layer=all"])
    planner = Planner()
    plan, footprint = planner.plan(recipe), MODELS["videollama2"].footprint(recipe)
    lengths = lengths_of(recipe, plan, footprint, None)
    flops = run_flops(plan, *dense_and_sparse(recipe, footprint, lengths))
    hours = read_paper()["tables"]["table4_efficiency_acl"]["rows"]["VideoLLaMA2"][2]
    assert flops / (PEAK * 3600 * hours) == pytest.approx(PAPER_USE, rel=0.02)
    assert planner.costs(recipe).figures["time"][1].high == pytest.approx(hours, rel=0.02)


def test_the_ratio_of_a_sparse_step() -> None:
    """279 targets beside 1,352 visual positions; padded rows save more, since both arms pay for the longest."""
    recipe = load_recipe("videollama2_regate")
    planner, footprint = Planner(), MODELS["videollama2"].footprint(recipe)
    lengths = lengths_of(recipe, planner.plan(recipe), footprint, None)
    valid, executed = sparse_ratios(recipe, footprint, lengths)
    assert valid == pytest.approx(0.926, abs=0.005)
    assert 0.85 < executed < valid
    one = load_recipe("videollama2_regate", ["train.micro_batch=1"])
    alone, padded = sparse_ratios(one, footprint, lengths)
    assert alone == pytest.approx(valid, abs=1e-9), "packed rows have no padding"
    assert alone < padded < alone + 0.003, "nor has a row alone, but it computes the whole last layer"
    kept = load_recipe("videollama2_regate", ["gate.execution=loss_only"])
    assert sparse_ratios(kept, footprint, lengths)[0] > 0.98


def test_layers_that_compute_less_in_a_sparse_step() -> None:
    """Leaving above no layer is the paper, above the last one nothing; deep saves more the earlier it begins."""

    def ratio(*overrides: str) -> float:
        work = figures(costs("videollama2_regate", *overrides), "work")
        return work["sparse / dense, packed rows"].low

    paper, loss_only = ratio(), ratio("gate.execution=loss_only")
    assert ratio("gate.from_layer=0") == paper
    assert ratio("gate.from_layer=28") == pytest.approx(loss_only, rel=1e-9)
    assert ratio("gate.deep=28") == pytest.approx(loss_only, rel=1e-9)
    assert paper < ratio("gate.from_layer=0.5") < loss_only
    assert ratio("gate.deep=7") < ratio("gate.deep=14") < ratio("gate.deep=21") < loss_only
    assert ratio("gate.deep=14", "gate.from_layer=0") < ratio("gate.deep=14")
    below = "gate.keep_below=[{layer: 14, keep: %s}]"
    assert paper < ratio(below % 0.75) < ratio(below % 1.0) == ratio("gate.from_layer=14")
    attended = "gate.visual={keep: 0.5, how: attention, from_layer: %d}"
    assert ratio("gate.visual={keep: 0.5, how: random}") < ratio(attended % 2) < ratio(attended % 14) < paper
    assert ratio("gate.layer_keep=0.5") < ratio("gate.layer_keep=0.75") < paper
    assert ratio("gate.layer_keep=1.0") == pytest.approx(paper)


def test_a_baseline_of_the_same_work() -> None:
    """A quarter of the cells in sparse steps, every target: as many targets, and by hand the positions."""
    pictures = ("gate.visual={keep: 0.25, how: random}", "gate.keep_ratio=1.0", "gate.selection=random")
    section = "a baseline of the same work"
    same = {figure.name: figure.low for figure in costs("videollama2_regate", *pictures).figures[section]}
    plan = make_plan(load_recipe("videollama2_regate", list(pictures)))
    assert same["equal targets"] == plan.steps
    visual, others = 1352, 40 + 279.4
    part = (visual / 4 + others) / (visual + others)
    assert same["equal positions"] == pytest.approx(plan.dense_steps + plan.sparse_steps * part, abs=1)
    assert same["equal positions"] < same["equal FLOPs"] < plan.steps
    words = {figure.name: figure.low for figure in costs("videollama2_regate").figures[section]}
    assert words["equal targets"] == round(plan.steps * make_plan(load_recipe("videollama2_regate")).keep_ratio)
    assert section not in costs("videollama2_baseline").figures
    both = "equal FLOPs with the tower in every step"
    assert both not in words, "nothing is kept of it"
    tiny = {figure.name: figure.low for figure in costs("tiny_regate").figures[section]}
    assert tiny["equal FLOPs"] < tiny[both] < 1000, "the ledger's account leaves out what both arms pay alike"
    assert both not in {figure.name for figure in costs("tiny_regate", "devices.tower_cache_gb=0").figures[section]}


def test_a_dense_step_that_distils_has_a_second_pass() -> None:
    """A forward pass of a sparse step, tower and connector with it: a third of its forward and backward and more."""
    pictures = ("gate.visual={keep: 0.25, how: random}", "gate.keep_ratio=1.0", "gate.selection=random")
    plain = figures(costs("videollama2_regate", *pictures), "work")
    distils = figures(costs("videollama2_regate", *pictures, "gate.distil=1.0"), "work")
    again = distils["elided pass to learn from TFLOP a sample"].high
    dense, sparse = "dense step TFLOP a sample", "sparse step TFLOP a sample"
    assert distils[dense].high - plain[dense].high == pytest.approx(again)
    assert plain[sparse].high / 4 < again < plain[sparse].high / 2
    assert distils[sparse].high == plain[sparse].high


def test_how_evenly_the_work_is_spread_and_what_padding_adds() -> None:
    """Answers are most of VideoChat2's positions, so that its micro-batches differ."""
    gpus = "devices.processes=16"

    def found(*overrides: str, micro_batch: int = 4) -> Any:
        sizes = ("train.global_batch=512", f"train.micro_batch={micro_batch}")
        work = costs("videochat2_regate", *sizes, *(overrides or (gpus,))).figures["work"]
        return {figure.name: figure for figure in work if figure.name in ("slowest GPU", "padding")}

    dealt, in_turn = found()["slowest GPU"], found(gpus, "devices.balance=false")["slowest GPU"]
    assert 1.0 <= dealt.low <= dealt.high < in_turn.low < in_turn.high < 1.5
    level = ("train.loss_norm=global_tokens", "train.cut=level")
    one_each = [found(gpus, *more, micro_batch=32)["slowest GPU"].high for more in ((), level)]
    assert one_each[1] < 1.01 < one_each[0]
    assert 1 < found()["padding"].low < 60
    assert "padding" not in found("train.rows=packed")
    assert "slowest GPU" not in found("devices.processes=1")
    with pytest.raises(RecipeError, match=r"train\.cut level puts other samples together, and loss_norm: square"):
        load_recipe("videochat2_regate", ("train.loss_norm=square", level[1]))


def test_memory_of_a_gpu() -> None:
    """Eight billion trained parameters of sixteen bytes: 128 GB, or 32 on each of four."""
    spread = figures(costs("videollama2_regate"), "memory of a GPU in training")
    assert spread["weights, gradients, AdamW GB"].high == pytest.approx(32, rel=0.01)
    assert 50 < spread["together GB a GPU"].high < 62
    assert not costs("videollama2_regate").warnings
    whole = costs("videollama2_regate", "devices.sharding=none")
    section = figures(whole, "memory of a GPU in training")
    assert section["weights, gradients, AdamW GB"].high == pytest.approx(128, rel=0.01)
    assert "put together for their pass GB" not in section
    assert "devices.sharding=full" in whole.warnings[0]
    lora = figures(costs("videochat2_regate"), "memory of a GPU in training")
    assert lora["frozen weights GB"].high == pytest.approx(14.5, rel=0.01), "Mistral-7B in bfloat16, as published"


def test_memory_follows_the_placement() -> None:
    """Two machines that each hold a whole: an eighth on each GPU. With offload the machine holds the rest."""
    gpu, machine = "memory of a GPU in training", "memory of the machine"
    node, full = (costs("internvl3_5_14b_regate", f"devices.sharding={name}") for name in ("node", "full"))
    state = "weights, gradients, AdamW GB"
    assert figures(node, gpu)[state].high == pytest.approx(2 * figures(full, gpu)[state].high)
    once = costs("internvl3_5_14b_regate", "devices.reduce=step")
    sums = figures(once, gpu)["sums of gradients of this machine GB"].high
    assert sums == pytest.approx(figures(node, gpu)[state].high / 4)
    aside = costs("videollama2_regate", "devices.offload=true")
    assert figures(aside, gpu)[state].high == 0
    assert figures(aside, machine)[state].high == pytest.approx(128, rel=0.01)
    assert figures(aside, gpu)["frozen weights GB"].high == pytest.approx(0.856, rel=0.01), "the tower stays"


def test_memory_with_the_optimizer_in_parts() -> None:
    """DeepSpeed's two stages: weights whole in both, gradients in the first; moments and the optimizer's copy of the
    weights are spread."""
    section, state = "memory of a GPU in training", "weights, gradients, AdamW GB"
    for stage, bytes_of_each in (("zero1", 8 + 12 / 8), ("zero2", 4 + 16 / 8)):
        there = costs("videollama2_regate", "hardware=8 GPUs of 80 GB", f"devices.sharding={stage}")
        assert figures(there, section)[state].high == pytest.approx(bytes_of_each * 128 / 16, rel=0.01)
        assert "put together for their pass GB" not in figures(there, section)
        assert figures(there, "memory of the machine")["weights while they are read GB"].high > 200


def test_a_placement_whose_package_is_missing_is_told_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)  # as where it is not installed
    recipe = load_recipe("videollama2_regate", ("devices.sharding=zero2",))
    warnings = Planner().plan(recipe).warnings
    assert any("devices.sharding zero2 needs DeepSpeed, which is not here" in warning for warning in warnings)
    (check,) = doctor._engines([recipe])
    assert (check.state, check.mend) == ("fail", INSTALL_DEEPSPEED)
    with pytest.raises(EnvironmentProblem, match="it is not installed"):
        check_engine(recipe.devices)
    check_engine(load_recipe("videollama2_regate").devices)
    with pytest.raises(RecipeError, match="offload is about weights in parts"):
        load_recipe("videollama2_regate", ("devices.sharding=zero2", "devices.offload=true"))


def test_memory_of_a_gpu_with_a_teacher(tmp_path: Path) -> None:
    """Its own decoder, 7.6 billion parameters of two bytes; or files as large as they are, whole or spread."""
    section = "memory of a GPU in the teacher's pass"
    own = figures(costs("videollama2_regate"), section)
    assert own["the teacher's weights GB"].high == pytest.approx(15.2, rel=0.01)
    assert "put together for their pass GB" not in own
    assert section not in costs("videollama2_baseline").figures
    paths = f"paths.weights={tmp_path}"
    assert section not in costs("videollama2_regate_teacher_57b", paths).figures, "nobody knows before it is there"
    (tmp_path / "Qwen2-57B-A14B-Instruct").mkdir()
    with (tmp_path / "Qwen2-57B-A14B-Instruct" / "model.safetensors").open("wb") as file:
        file.truncate(115 * 10**9)  # takes no disk
    large = costs("videollama2_regate_teacher_57b", paths)
    assert figures(large, section)["the teacher's weights GB"].high == pytest.approx(115 / 4)
    assert not large.warnings
    whole = costs("videollama2_regate_teacher_57b", paths, "devices.shard_teacher=false")
    assert "set devices.shard_teacher=true" in whole.warnings[0]


def test_what_each_node_does() -> None:
    assert costs("internvl3_5_14b_regate").nodes == (
        "node 0: prepares, judges results, writes the record; 8 processes (ranks 0 to 7)",
        "node 1: does what node 0 tells it; 8 processes (ranks 8 to 15)",
        "each process: 32 micro-batches of 1 of a step, 1/16 of the reference losses and of an evaluation's items",
        "weights: spread over the 8 processes of each node, which holds a whole",
        "teacher: whole on every process",
    )
    planner = Planner()
    recipe = load_recipe("videollama2_regate_teacher_57b")
    lines = render(planner.plan(recipe), planner.costs(recipe))
    assert "    weights: spread over all 4 processes" in lines
    assert "    teacher: spread over all 4 processes" in lines
    assert not costs("tiny_regate").nodes, "one process does all"


def test_a_placement_that_the_hardware_has_not_is_refused() -> None:
    with pytest.raises(RecipeError, match="hardware names one"):
        costs("videollama2_regate", "devices.sharding=node")
    with pytest.raises(RecipeError, match="is not a multiple of micro_batch x GPUs"):
        costs("videollama2_regate", "hardware=5 GPUs")


def test_gpus_are_those_of_the_recipe() -> None:
    hours = {n: figures(costs("videollama2_regate", f"devices.processes={n}"), "time") for n in (4, 8)}
    assert hours[4]["training hours on 4 GPUs"].low == pytest.approx(2 * hours[8]["training hours on 8 GPUs"].low)


def test_own_data_are_counted_in_words() -> None:
    small = ["data.train_clips=10", "data.test_clips=20", "data.stage_clips=1", "train.global_batch=4"]
    recipe = load_recipe("tiny_smoke_regate", [*small, "train.micro_batch=4"])
    make_data(recipe.data, recipe.paths, recipe.seed)
    answer = Planner().costs(recipe)
    work = {figure.name: figure for figure in answer.figures["work"]}
    assert work["targets"].source == "words of 30 samples"
    assert 8 < work["targets"].low < 60
    assert work["sparse / dense, padded rows"].low < 1
    assert answer.figures["smallest difference between two runs"][0].name == "shapes"
    assert answer.fetch == ()


@pytest.mark.parametrize(("benchmark", "parts"), [("pope", [9000]), ("mvbench", [200] * 20)])
def test_the_smallest_difference_is_found_four_times_in_five(benchmark: str, parts: list[int]) -> None:
    """Runs are drawn that differ by what is printed, and tested with a z test of the paired differences."""
    recipe = load_recipe("videollama2_regate", [f"evaluate.benchmarks=[{benchmark}]"])
    figure = difference_figures(recipe, Planner().plan(recipe), None)[0]
    rng, found, draws = np.random.default_rng(0), 0, 600
    disagree, shift = DISAGREE[0], figure.low / 100
    chances = [(disagree + shift) / 2, (disagree - shift) / 2, 1 - disagree]
    for _ in range(draws):
        mean = variance = 0.0
        for count in parts:
            won, lost, _ = rng.multinomial(count, chances)
            difference = (won - lost) / count
            mean += difference / len(parts)
            variance += ((won + lost) / count - difference**2) / count / len(parts) ** 2
        found += abs(mean) > 1.96 * variance**0.5
    assert found / draws == pytest.approx(0.8, abs=0.05)


def test_a_limit_makes_the_difference_larger_and_the_generations_fewer() -> None:
    asked = "evaluate.benchmarks=[pope, perceptiontest]"
    whole, part = (costs("videollama2_regate", asked, *more) for more in ((), ("evaluate.limit=100",)))
    wide, narrow = (figures(answer, "smallest difference between two runs") for answer in (whole, part))
    assert narrow["pope points"].low > 3 * wide["pope points"].low
    generations = figures(part, "evaluation")["generations"].low
    assert generations < figures(whole, "evaluation")["generations"].low / 10


def test_a_command_for_everything_that_is_missing(tmp_path: Path) -> None:
    recipe = load_recipe("videollama2_regate", ["evaluate.benchmarks=[mvbench, pope]"])
    planner = Planner()
    plan, commands = planner.plan(recipe), [shlex.split(line, comments=True) for line in planner.costs(recipe).fetch]
    folders = {Path(words[-1]) for words in commands if words}
    for line in (*plan.missing_weights, *plan.missing_data):
        missing = Path(line.partition(": ")[0])
        assert folders & {missing, missing.parent}, line
    command = [sys.executable, "-m", "huggingface_hub.cli.hf", "download", "--help"]
    help_text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for words in commands:
        if words:
            assert words[:2] == ["hf", "download"]
            assert all(word in help_text for word in words if word.startswith("--")), words
    assert next(w for w in commands if "OpenGVLab/MVBench" in w)[5:7] == ["--revision", "video"]


def test_nothing_is_fetched_twice(tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    (weights / "VideoLLaMA2.1-7B-16F-Base").mkdir(parents=True)
    (weights / "VideoLLaMA2.1-7B-16F-Base" / "mm_projector.bin").touch()
    commands = costs("videollama2_regate", f"paths.weights={weights}").fetch
    assert not any("mm_projector" in command for command in commands)
    assert any("siglip" in command for command in commands)
    single = costs("videochat2_regate", "evaluate.benchmarks=[]").fetch
    assert "hf download OpenGVLab/videochat umt_l16_qformer.pth --local-dir workspace/weights" in single


def test_the_contradictions_of_the_paper_hold() -> None:
    """The figures in them, from the paper's own numbers."""
    rows = read_paper()["tables"]["table4_efficiency_acl"]["rows"]
    assert rows["VideoLLaMA2"][0] / 300_000 == pytest.approx(279, abs=0.5)
    assert rows["VideoChat2"][0] / 2.6e6 == pytest.approx(1512, abs=0.5)
    assert rows["VideoChat2"][0] / 2.6e6 / 3 == pytest.approx(504, abs=0.5)
    cycle = DualCycle.from_config(GateConfig())
    reduction = {steps: 1 - cycle.expected_keep(steps) for steps in (1660, 1870, 1940, 2343)}
    assert reduction[2343] == pytest.approx(0.4172, abs=5e-5)
    assert 300_000 // 128 == 2343
    tokens, hours = rows["InternVL3.5"][0], rows["InternVL3.5"][2]
    assert reduction[1870] == pytest.approx(1 - rows["InternVL3.5-ReGATE-extended"][0] / tokens, abs=1e-3)
    assert tokens / 1870 / 512 == pytest.approx(16 * 256 + 40, abs=1)
    decoders = {
        size: footprint_of(f"internvl3_5_{size}_regate").decoder_parameters / 1e9 for size in ("8b", "14b")
    }
    peak = hours * 3600 * PEAK
    assert {s: round(6e9 * n * tokens / peak, 3) for s, n in decoders.items()} == {"8b": 0.126, "14b": 0.226}
    teacher = rows["InternVL3.5-ReGATE-extended"][1] / rows["VideoChat2-ReGATE-extended"][1]
    assert teacher == pytest.approx(1.13)
    by_size = {s: n * tokens / (7.24 * rows["VideoChat2"][0]) for s, n in decoders.items()}
    assert by_size == pytest.approx({"8b": 1.14, "14b": 2.06}, abs=0.01)
    third = costs("internvl3_5_14b_regate").contradictions
    assert sum("the size is not stated" in line for line in third) == 1
    gated, baseline = costs("videollama2_regate").contradictions, costs("videollama2_baseline").contradictions
    assert set(baseline) < set(gated)
    assert all(line.startswith("gate: ") for line in set(gated) - set(baseline))
    assert any("1,512 a pair" in line for line in costs("videochat2_regate").contradictions)
    assert not any("1,512 a pair" in line for line in gated)
    assert costs("tiny_regate").contradictions == ()


def test_lines_for_a_person() -> None:
    planner, recipe = Planner(), load_recipe("videollama2_regate")
    answer = planner.costs(recipe)
    text = "\n".join(render(planner.plan(recipe), answer))
    for figures_of_section in answer.figures.values():
        for figure in figures_of_section:
            assert figure.words in text
            assert text.count(f"] {figure.source}\n") == 1
    assert all(line in text for line in (*answer.fetch, *answer.contradictions))


def test_the_page_on_models_says_what_the_plan_counts() -> None:
    """The table of the shipped pairs."""
    page = (Path(__file__).parents[3] / "docs" / "your_model.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \| ([\d.]+) \| ([\d.]+) \|$", page, re.MULTILINE)
    assert len(rows) == 7
    for pair, gpus, gigabytes, ratio in rows:
        recipe, counted = load_recipe(f"{pair}_regate"), costs(f"{pair}_regate")
        machines, each = re.match(r"(?:(\d+) machines of )?(\d+) GPU", recipe.hardware or "").groups()  # type: ignore[union-attr]
        assert int(gpus) == int(machines or 1) * int(each)
        together = figures(counted, "memory of a GPU in training")["together GB a GPU"]
        packed = figures(counted, "work")["sparse / dense, packed rows"]
        assert (f"{together.low:.1f}", f"{packed.low:.3f}") == (gigabytes, ratio), pair
        assert not counted.warnings, pair
    small = costs("smolvlm2_500m_regate", "model.checkpoint=SmolVLM2-256M-Video-Instruct")
    assert f"{figures(small, 'memory of a GPU in training')['together GB a GPU'].low:.1f}" == "4.1"


def test_the_teacher_costs_what_its_own_size_costs() -> None:
    def hours(name: str, *overrides: str) -> float:
        return figures(costs(name, *overrides), "time")["teacher GPU-hours"].low

    own = hours("videollama2_regate")

    def products(hidden: int, heads: int, kv: int, intermediate: int) -> float:
        """Weights times tokens of a sample: attention and perceptron of 28 layers, and the head on the targets."""
        layer = 2 * hidden * 128 * (heads + kv) + 3 * hidden * intermediate
        return 28 * layer * (40 + 279.4) + 152_000 * hidden * 279.4

    student = products(3584, 28, 4, 18944)
    small, large = products(1536, 12, 2, 8960), products(3584, 28, 4, 8 * 2560 + 20480)
    assert hours("videollama2_regate_teacher_1.5b") / own == pytest.approx(small / student, rel=0.01)
    assert hours("videollama2_regate_teacher_57b") / own == pytest.approx(large / student, rel=0.01)


def test_a_teacher_on_the_disk_is_counted_by_its_own_file_and_an_unknown_one_is_not(tmp_path: Path) -> None:
    unknown = "gate.reference.model=Mine-3B"
    planned = costs("videollama2_regate", unknown)
    assert "teacher GPU-hours" not in figures(planned, "time")
    assert any("the teacher Mine-3B is not there and of unknown size" in warning for warning in planned.warnings)
    (tmp_path / "weights" / "Mine-3B").mkdir(parents=True)
    sizes = {"hidden_size": 1536, "intermediate_size": 8960, "num_attention_heads": 12, "num_key_value_heads": 2}
    config = {"num_hidden_layers": 28, "vocab_size": 151936, **sizes}
    (tmp_path / "weights" / "Mine-3B" / "config.json").write_text(json.dumps(config))
    on_disk = figures(costs("videollama2_regate", unknown, "paths.weights=weights"), "time")["teacher GPU-hours"]
    as_published = figures(costs("videollama2_regate_teacher_1.5b"), "time")["teacher GPU-hours"]
    assert on_disk.low == as_published.low
    assert "config.json" in on_disk.source
