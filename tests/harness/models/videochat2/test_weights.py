"""VideoChat2's files: every name and shape at full size, stages put together, and what is refused."""

from __future__ import annotations

import json
import lzma
import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from transformers import MistralConfig

from harness.common.errors import EnvironmentProblem, StaleError
from harness.models.drop_path import DropPath
from harness.models.videochat2 import checkpoint_names as names
from harness.models.videochat2.config import LORA_TARGETS, VideoChat2Config
from harness.models.videochat2.model import VideoChat2ForConditionalGeneration
from harness.models.videochat2.qformer import BRANCHES
from harness.models.videochat2.weights import (
    Lora,
    ModelFiles,
    add_adapters,
    build,
    load_checkpoint,
    load_pretrained,
    read_stages,
    save_checkpoint,
    save_stage3,
    trained_state,
)
from tests.harness.worlds.videochat2 import stage_files
from tests.harness.worlds.videochat2_fixture import Parity

if TYPE_CHECKING:
    from peft import PeftModel

FIXTURES = Path(__file__).parents[3] / "fixtures"
STAGE3 = json.loads(lzma.decompress((FIXTURES / "videochat2_stage3_shapes.json.xz").read_bytes()))
MISTRAL = MistralConfig(
    vocab_size=32000, rope_parameters={"rope_type": "default", "rope_theta": 1e6}, sliding_window=None
)
PARTS = {
    "vision_encoder.": 290_477_056,
    "vision_layernorm.": 2_048,
    "qformer.": 182_121_216,
    "query_tokens": 24_576,
    "extra_query_tokens": 49_152,
    "mistral_proj.": 3_149_824,
    "mistral_model.": 42_520_576,
}
"""Trained parameters by part, at full size."""


@pytest.fixture(scope="module")
def whole() -> PeftModel:
    """The official sizes, without memory."""
    with torch.device("meta"):
        model = VideoChat2ForConditionalGeneration(VideoChat2Config(text_config=MISTRAL.to_dict()))
        return add_adapters(model, Lora())


@pytest.fixture(scope="module")
def parity() -> Parity:
    return Parity(FIXTURES / "videochat2")


@pytest.fixture(scope="module")
def model(parity: Parity) -> PeftModel:
    return parity.model()


@pytest.fixture
def stages(parity: Parity, tmp_path: Path) -> ModelFiles:
    """The fixture's stage 3 without its adapters, as the files of stages 1 and 2."""
    one, two = stage_files(parity, tmp_path)
    return replace(parity.files, stage1=one, stage2=two, stage3=None)


def test_every_name_and_shape_of_the_official_stage_3(whole: PeftModel) -> None:
    base: Any = whole.get_base_model()
    trained = {names.official_name(n): list(v.shape) for n, v in base.named_parameters() if v.requires_grad}
    positions = {names.POSITION_IDS: [1, base.config.qformer_config.max_position_embeddings]}
    assert trained | positions == STAGE3
    assert len(STAGE3) == 1086
    assert all(names.official_name(names.our_name(name)) == name for name in STAGE3)


def test_the_table_of_trained_parameters(whole: PeftModel) -> None:
    base: Any = whole.get_base_model()
    counts = dict.fromkeys(PARTS, 0)
    for name, value in base.named_parameters():
        if value.requires_grad:
            part = next(part for part in PARTS if names.official_name(name).startswith(part))
            counts[part] += value.numel()
    assert counts == PARTS
    assert sum(counts.values()) == 518_344_448 == sum(map(math.prod, STAGE3.values())) - 512
    frozen = sum(value.numel() for value in base.parameters() if not value.requires_grad)
    assert frozen == 7_241_732_096
    layers = [name for name, module in base.named_modules() if isinstance(module, LoraLayer)]
    assert len(layers) == 7 * 32 + 1
    assert all(name.rsplit(".", 1)[-1] in LORA_TARGETS for name in layers)
    assert all(name == "lm_head" or name.startswith("model.language_model.layers.") for name in layers)


def test_the_constants_that_no_file_holds(whole: PeftModel) -> None:
    base: Any = whole.get_base_model()
    vision, qformer = base.model.vision, base.model.qformer
    assert len(vision.blocks) == 23
    assert {block.norm1.eps for block in vision.blocks} | {block.norm2.eps for block in vision.blocks} == {1e-6}
    assert base.model.vision_layernorm.eps == 1e-12
    norms = [module for module in qformer.modules() if isinstance(module, torch.nn.LayerNorm)]
    assert len(norms) == 1 + 12 * 3 + 6
    assert {norm.eps for norm in norms} == {1e-12}
    assert (qformer.config.hidden_dropout_prob, qformer.config.attention_probs_dropout_prob) == (0.1, 0.1)
    for place, layer in enumerate(qformer.encoder.layer):
        branches = [module for module in layer.modules() if isinstance(module, BRANCHES)]
        assert len(branches) == (4 if place % 2 == 0 else 3)
        for branch in branches:
            dropout, path = branch.dropout
            assert (dropout.p, path.rate) == (0.1, pytest.approx(0.2 * place / 11))
    assert {module.p for n, module in base.named_modules() if n.endswith("lora_dropout.default")} == {0.1}
    assert {module.scaling["default"] for module in base.modules() if isinstance(module, LoraLayer)} == {2.0}
    assert base.config.visual_tokens == 96
    assert base.config.placeholder_token_id == base.model.language_model.embed_tokens.num_embeddings


def test_stochastic_depth_leaves_out_whole_rows_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    path, rows = DropPath(0.2), torch.ones(4000, 3, 2)
    out = path.train()(rows)
    assert set(out.unique().tolist()) == {0.0, 1.25}
    assert torch.equal(out, out[:, :1, :1].expand_as(out))
    assert float(out.mean()) == pytest.approx(1.0, abs=0.05)
    assert torch.equal(path.eval()(rows), rows)


def test_a_file_is_written_as_it_was_read(parity: Parity, model: PeftModel, tmp_path: Path) -> None:
    theirs = load_file(parity.files.stages()[0])
    for name in ("again.pth", "again.safetensors"):
        save_stage3(model, tmp_path / name)
        ours = names.read_tensors(tmp_path / name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    again = build(replace(parity.files, stage3=tmp_path / "again.pth"))
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


def test_stages_1_and_2_make_what_stage_3_starts_from(parity: Parity, stages: ModelFiles) -> None:
    state, told = read_stages(stages)
    official = load_file(parity.files.stages()[0])
    wanted = {name for name in official if names.LORA not in name} - {names.POSITION_IDS}
    assert state.keys() == wanted
    assert all(torch.equal(value, official[name]) for name, value in state.items())
    assert [account.used for account in told] == [
        sum(bool(names.TEXT_HALF.match(name)) for name in official),
        len(parity.told["stage2_trainable_keys"]) - 1,
    ]
    assert set(told[0].unused) == {"itm_head.weight", names.POSITION_IDS}
    assert (told[1].unused, told[1].replaced) == ((names.POSITION_IDS,), 0)
    assert told[0].used + told[0].replaced + 2 == len(names.read_tensors(told[0].path))
    assert "taken from the later file, 2 of no use here: " in str(told[0])
    made, again = (build(stages, seed=seed) for seed in (3, 3))
    adapters = {name: value for name, value in made.named_parameters() if names.LORA in name}
    assert all(not value.any() for name, value in adapters.items() if "lora_B" in name)
    assert all(value.any() for name, value in adapters.items() if "lora_A" in name)
    assert all(torch.equal(value, again.get_parameter(name)) for name, value in adapters.items())
    assert made.get_base_model().config.lora == {"rank": 4, "alpha": 8, "dropout": 0.1}


def test_building_leaves_the_random_state_alone(stages: ModelFiles) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    build(stages)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_text_half_must_come_from_stage_1(stages: ModelFiles) -> None:
    with pytest.raises(
        EnvironmentProblem, match="half of the QFormer that reads the instruction is missing"
    ) as error:
        build(replace(stages, stage1=None))
    assert "umt_l16_qformer.pth" in str(error.value.hint)


def test_a_pickled_configuration_is_told_and_not_run(
    stages: ModelFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hint's own line makes a file that can be read."""
    path = tmp_path / "trained.pth"
    torch.save({"model": {"query_tokens": torch.zeros(1)}, "config": SimpleNamespace(lr=1)}, path)
    with pytest.raises(
        EnvironmentProblem, match=r"trained\.pth: beside tensors it holds types\.SimpleNamespace"
    ) as e:
        read_stages(replace(stages, stage2=path))
    code = str(e.value.hint).split('python -c "', 1)[1].rstrip('"')
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert list(names.read_tensors(tmp_path / "tensors-trained.pth")) == ["query_tokens"]


def test_files_that_are_no_tables_of_tensors(tmp_path: Path) -> None:
    path = tmp_path / "file.pth"
    with pytest.raises(EnvironmentProblem, match="not there"):
        names.read_tensors(path)
    path.write_bytes(b"<html>sign in</html>")
    with pytest.raises(EnvironmentProblem, match="cannot be read as a file of tensors"):
        names.read_tensors(path)
    torch.save({"epoch": 3}, path)
    with pytest.raises(EnvironmentProblem, match="no table of tensors"):
        names.read_tensors(path)
    torch.save({"a": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    assert torch.equal(names.read_tensors(path)["a"], torch.ones(2))


def test_a_stage_in_the_place_of_another(parity: Parity, stages: ModelFiles) -> None:
    with pytest.raises(EnvironmentProblem, match="holds no adapters, so it is no stage-3 file"):
        read_stages(replace(stages, stage3=stages.stage2))
    with pytest.raises(EnvironmentProblem, match="holds adapters, so it is a stage-3 file"):
        read_stages(replace(stages, stage2=parity.files.stage3))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rope_theta": 10000.0}, "belong to Mistral-7B-Instruct-v0.2"),
        ({"sliding_window": 4096}, "sliding window of 4096"),
        ({"model_type": "llama"}, "a llama with rope_theta"),
    ],
)
def test_another_language_model_is_refused(
    parity: Parity, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    """Mistral-7B-v0.1 has the same sizes: without a word it would write nonsense."""
    base = Path(shutil.copytree(parity.files.language_model, tmp_path / "base"))
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(EnvironmentProblem, match=words):
        build(replace(parity.files, language_model=base))


def test_tensors_that_do_not_fit_are_named(parity: Parity, tmp_path: Path) -> None:
    own = load_file(parity.files.stages()[0])

    def built(lora: Lora | None = None, **changes: torch.Tensor | None) -> None:
        state = {**own, **{name.replace("__", "."): value for name, value in changes.items()}}
        path = tmp_path / "changed.pth"
        torch.save({name: value for name, value in state.items() if value is not None}, path)
        build(replace(parity.files, stage3=path, lora=lora or parity.files.lora))

    with pytest.raises(EnvironmentProblem, match="lora_A"):
        built(lora=Lora(rank=8))
    gone = "mistral_model__base_model__model__lm_head__lora_A__default__weight"
    with pytest.raises(EnvironmentProblem, match=r"1 missing \(lm_head\.lora_A"):
        built(**{gone: None})
    with pytest.raises(EnvironmentProblem, match=r"1 tensors of another size: model\.projector\.bias is \[3\]"):
        built(mistral_proj__bias=torch.zeros(3))
    with pytest.raises(EnvironmentProblem, match=r"1 missing: model\.vision_layernorm\.bias"):
        built(vision_layernorm__bias=None)
    with pytest.raises(EnvironmentProblem, match="extra_query_tokens is missing"):
        built(extra_query_tokens=None)


def test_a_checkpoint_knows_its_base(parity: Parity, model: PeftModel, tmp_path: Path) -> None:
    folder = tmp_path / "step"
    folder.mkdir()
    save_checkpoint(model, folder)
    batch = parity.batch("video8").model_inputs()
    with torch.no_grad():
        wanted = model(**batch).logits
        again: Any = load_checkpoint(folder, parity.files.language_model)
        assert torch.equal(again.eval()(**batch).logits, wanted)
        plain = load_pretrained(folder, parity.files.language_model).eval()
        assert plain.config.lora is None
        assert not any(names.LORA in name for name in plain.state_dict())
        assert parity.close("video8", plain(**batch).logits) <= 5e-4, "merged"
    with pytest.raises(ValueError, match="no adapters"):
        trained_state(plain)
    plain.save_pretrained(tmp_path / "whole")
    other = load_pretrained(tmp_path / "whole").eval()
    with torch.no_grad():
        assert torch.equal(other(**batch).logits, plain(**batch).logits)
    with pytest.raises(EnvironmentProblem, match="adapters without their base"):
        load_pretrained(folder)
    base = Path(shutil.copytree(parity.files.language_model, tmp_path / "base"))
    weights = base / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    with pytest.raises(StaleError, match="were trained on mistral, whose weights are not those of"):
        load_checkpoint(folder, base)


def test_a_frozen_base_in_half_precision_keeps_the_rest_exact(parity: Parity, model: PeftModel) -> None:
    half = build(parity.files, base_dtype=torch.bfloat16)
    trained = {name for name, value in half.named_parameters() if value.requires_grad}
    for name, value in half.named_parameters():
        assert value.dtype == (torch.float32 if name in trained else torch.bfloat16), name
        if name in trained:
            assert torch.equal(value, model.get_parameter(name))
