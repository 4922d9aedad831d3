"""Every method of the gate on every family that can be built here: packed rows equal the slow definition, logits,
losses and all gradients, in float64; whole, and with LoRA whose layers are recomputed. `docs/methods.md` shows the
outcomes.

The slow definition is Algorithm 1 with a mask for each layer; deep layers put back the state of what is not read.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

import regate
from harness.common.errors import RecipeError
from harness.common.progress import Progress
from harness.config.model import TinyHFModel, TinyVideoChat2Model, TinyVideoLLaMA2Model
from harness.data.loading.video import read_frames
from harness.data.sources import make_data, open_data
from harness.models import adapter_for
from harness.training.attachment import check_attachable
from regate.wrapping import decoder_of
from tests.harness.worlds.tiny import tiny_recipe
from tests.regate.test_equivalence import assert_same
from tests.regate.test_packed import packed, run
from tests.regate.test_visual import put_back

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.config.recipe import Recipe

PAGE = Path(__file__).parents[2] / "docs" / "methods.md"
EQUAL, REFUSED = "equal", "refused"


def layers(folder: Path, section: Any = None, **model: Any) -> Recipe:
    """A recipe of three layers."""
    if section is None:
        return tiny_recipe(folder, layers=3)
    sizes = section.model_validate({"hidden": 32, "layers": 3, **model})
    return tiny_recipe(folder).model_copy(update={"model": sizes})


FAMILIES: dict[str, Callable[[Path], Recipe]] = {
    "tiny": layers,
    "hf": lambda folder: layers(folder, TinyHFModel, adapter="tiny_hf", family="internvl", heads=2),
    "videollama2": lambda folder: layers(folder, TinyVideoLLaMA2Model, adapter="tiny_videollama2", tower_layers=2),
    "videochat2": lambda folder: layers(folder, TinyVideoChat2Model, adapter="tiny_videochat2", vocabulary=640),
}
"""By the names of the columns of the table in docs/methods.md."""
METHODS: dict[str, dict[str, Any]] = {
    "the paper": {"keep_ratio": 0.5},
    "from_layer": {"keep_ratio": 0.5, "from_layer": 1},
    "keep_below": {"keep_ratio": 0.5, "keep_below": (regate.KeepBelow(1, 0.75),)},
    "deep": {"keep_ratio": 0.5, "deep": 1},
    "from_layer and deep": {"keep_ratio": 0.5, "from_layer": 1, "deep": 2},
    "layer_keep": {"keep_ratio": 0.5, "layer_keep": 0.5},
    "ramp": {"keep_ratio": 0.5, "ramp": regate.RampConfig(to=0.25, steps=4)},
    **{
        f"visual: {how}": {"visual": regate.VisualConfig(0.25 if how != "temporal" else 0.5, how)}  # type: ignore[arg-type]
        for how in ("pool", "pattern", "random", "frames", "diverse", "merge", "temporal")
    },
    "visual and deep": {"keep_ratio": 0.5, "visual": regate.VisualConfig(0.25, "pattern"), "deep": 1},
    "visual and from_layer": {"keep_ratio": 0.5, "visual": regate.VisualConfig(0.25, "pattern"), "from_layer": 1},
}


FEW = frozenset(method for method in METHODS if "visual" not in method) | {"visual: pool", "visual and deep"}
"""Under LoRA, and for transformers' families, of which seven have all others in tests/regate."""


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any]:
    recipe = FAMILIES[request.param](tmp_path_factory.mktemp(request.param))
    make_data(recipe.data, recipe.paths, recipe.seed)
    adapter = adapter_for(recipe, open_data(recipe.data, recipe.paths, recipe.seed))
    adapter.prepare(Progress(quiet=True))
    return request.param, adapter


class Case:
    """A student in float64 with two conversations about clips; random weights where LoRA's would be zero."""

    def __init__(self, adapter: Any, *, lora: bool) -> None:
        processor, data = adapter.processor(), adapter.data
        shortest = sorted(data.samples, key=lambda sample: sum(len(turn.text) for turn in sample.turns))[:2]
        batch = processor.collate([
            processor.encode(sample, [read_frames(m, frames=data.frames) for m in sample.media])
            for sample in shortest
        ])  # fmt: skip
        self.layout, self.ids_B = batch.layout, batch.sample_ids_B
        self.inputs = {
                name: value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
            for name, value in batch.model_inputs().items()
        }
        torch.manual_seed(1)
        model = adapter.student()
        if lora and not isinstance(model, PeftModel):
            names = r".*(language_model|text_model).*\.(q_proj|v_proj|down_proj)"
            model = get_peft_model(model, LoraConfig(r=4, target_modules=names))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.2)
        self.model = model.double().eval()

    def decide(self, settings: dict[str, Any]) -> regate.Decision:
        schedule = {"keep_ratio": 1.0, "selection": "random", "warmup_steps": 0, "cycle_steps": 4, "dense_steps": 1}
        gate = regate.Gate(regate.GateConfig(**{**schedule, **settings}), None)
        return gate.decide(self.layout, self.ids_B, step=2)


def slow(case: Case, decision: regate.Decision) -> Any:
    if decision.deep is None:
        return run(case.model, case.inputs, decision, execution="layerwise")
    if not decision.elides:  # Algorithm 1 needs something to leave out
        return frozen(case.model, case.inputs, decision, decision.deep)
    return put_back(case, decision)  # type: ignore[arg-type]


def frozen(*arguments: Any) -> Any:
    from tests.regate.test_depth import frozen as untouched

    return untouched(*arguments)


@pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora, recomputed"])
def test_every_method_is_its_slow_definition_or_refused(family: tuple[str, Any], lora: bool) -> None:
    name, adapter = family
    case = Case(adapter, lora=lora)
    decoder: Any = decoder_of(case.model)
    outcomes = {}
    for method, settings in METHODS.items():
        if (lora or name == "hf") and method not in FEW:
            continue
        if "visual" in settings and not adapter.tells_grids:
            gate = regate.GateConfig(selection="random", **settings)
            with pytest.raises(RecipeError, match=r"gate\.visual elides cells"):
                check_attachable(adapter, adapter.recipe.model_copy(update={"gate": gate}))
            outcomes[method] = REFUSED
            continue
        decision = case.decide(settings)
        assert decision.sparse
        expected = slow(case, decision)
        assert all("lora" in key for key in expected[2] if "layers" in key and ".self_attn.q_proj" in key) or not lora
        if lora:
            recompute(case.model, decoder, on=True)
        assert_same(packed(case.model, case.inputs, decision, outputs="predictors"), expected)
        if lora:
            recompute(case.model, decoder, on=False)
        outcomes[method] = EQUAL
    assert outcomes == {method: cells[name] for method, cells in table().items() if method in outcomes}
    assert len(outcomes) == len(FEW if lora or name == "hf" else METHODS)


def recompute(model: Any, decoder: Any, *, on: bool) -> None:
    """Layers recompute as in training; nothing else is in training mode, so that nothing is drawn."""
    if on:
        decoder.activation_checkpointing_enable({"use_reentrant": False})
    else:
        decoder.activation_checkpointing_disable()
    for layer in decoder.layers:
        layer.training = on


def table() -> dict[str, dict[str, str]]:
    """The table of docs/methods.md: method -> family -> outcome."""
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    first = next(place for place, line in enumerate(lines) if line.startswith("| method | tiny |"))
    names = [cell.strip() for cell in lines[first].strip("|").split("|")][1:]
    rows = {}
    for line in lines[first + 2 :]:
        method, *cells = [re.sub("`", "", cell).strip() for cell in line.strip("|").split("|")]
        if len(cells) != len(names):
            break
        rows[method] = dict(zip(names, cells, strict=True))
    return rows


def test_the_table_names_every_method_and_family() -> None:
    rows = table()
    assert list(rows) == list(METHODS)
    assert all(list(cells) == list(FAMILIES) for cells in rows.values())
