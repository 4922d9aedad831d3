"""InternVL computes what the official code computes: ids, labels, tiles, pixels, features, logits, losses, gradients,
answers. `--parity-root` names another fixture of the same format.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import pytest
import torch
import torch.distributed as dist
from transformers import Trainer

import regate
from harness.config.data import InternVLData
from harness.config.recipe import OptimizerRecipe, Paths
from harness.data.loading.frames import middle, random
from harness.data.sources import open_data
from harness.models.adapter import ParameterGroup
from harness.models.forward import scored_forward
from harness.models.hf.internvl.chat import SYSTEM
from harness.models.hf.internvl.checkpoint_names import official_name
from harness.models.hf.internvl.image_processing import tile_grid
from harness.models.hf.model import PARTS, decayed_names, parts_of
from harness.training.loss_norm import LossNorm, MicroBatchNorm, norms_of, weight_of
from harness.training.optimizer import make_optimizer
from regate.types import IGNORE
from tests import forked
from tests.harness.worlds.internvl_fixture import Parity

if TYPE_CHECKING:
    from torch import Tensor

    from harness.data.sample import Batch

REDUCTIONS: Final[tuple[LossNorm, ...]] = ("token", "sample", "square")
FEATURES, LOGITS, LOSS, GRADIENT = 5e-5, 1e-4, 1e-5, 1e-4
GREY_LEVEL = 1.001 / 255 / 0.224
"""Of the colour with the smallest deviation, normalised."""


@pytest.fixture(scope="module")
def parity(internvl_root: Path) -> Parity:
    return Parity(internvl_root)


@pytest.fixture(scope="module", params=["eager", "sdpa"])
def model(request: pytest.FixtureRequest, parity: Parity) -> Any:
    model = parity.model(request.param)
    parts = (model.config, model.config.text_config, model.config.vision_config)
    assert all(part._attn_implementation == request.param for part in parts)
    return model


def difference(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max())


# --- text ------------------------------------------------------------------------------------------------


def test_ids_and_labels_are_the_official_ones(parity: Parity) -> None:
    for item, case in parity.cases.items():
        row = parity.encoded(item)
        assert torch.equal(row.input_ids_S, parity.inputs[f"{item}.input_ids"].long()), item
        assert torch.equal(row.labels_S, parity.inputs[f"{item}.labels"].long()), item
        assert len(row.labels_S) == case["tokens"]
        assert int((row.labels_S != IGNORE).sum()) == case["labels"]
        text = parity.processor(item).encode(parity.samples[item], None)
        assert torch.equal(row.input_ids_S, text.input_ids_S), item
        assert torch.equal(row.kind_S, text.kind_S), item


def test_rows_are_padded_behind_their_end_alone(parity: Parity) -> None:
    """The official padding hides every token with the id 0 from attention; here the true ends count."""
    batch = parity.batch(parity.rows)
    assert torch.equal(batch.layout.labels_BS, parity.inputs["batch.labels"].long())
    assert torch.equal(batch.inputs["attention_mask"], parity.inputs["batch.attention_mask"].long())
    mask = batch.inputs["attention_mask"].bool()
    assert torch.equal(batch.input_ids_BS[mask], parity.inputs["batch.input_ids"].long()[mask])
    bang = parity.batch(["bang"])
    assert bool((bang.input_ids_BS == 0).any())
    assert torch.equal(bang.inputs["attention_mask"][0], parity.inputs["bang.attention_mask"].long())
    assert not bool(parity.inputs["bang.attention_mask.official_collator"].all())


def test_prompts_are_those_of_the_official_chat(parity: Parity) -> None:
    items = [name.split(".")[1] for name in parity.inputs if name.startswith("infer.") and name.endswith("input_ids")]
    assert {"image", "video", "text"} <= set(items)
    for item in items:
        batch = parity.prompt(item)
        assert torch.equal(batch.input_ids_BS, parity.inputs[f"infer.{item}.input_ids"].long()), item
        if "pixel_values" in batch.inputs:
            pixels = batch.model_inputs()["pixel_values"]
            assert torch.equal(pixels, parity.inputs[f"infer.{item}.pixel_values"]), item


def test_words_of_the_rules(parity: Parity) -> None:
    tiles = parity.processor().tiles
    assert tiles is not None
    assert parity.rules["system_message"] == SYSTEM
    for opened, rule in ((False, "video_prefix_training"), (True, "video_prefix_evaluation")):
        own = [parity.rules[rule].format(i=place + 1).replace("<image>", tiles.picture_text(1)) for place in range(2)]
        assert tiles.video_text(2, asked=opened) == "\n".join(own)


# --- pixels ----------------------------------------------------------------------------------------------


def test_grids_of_tiles(parity: Parity) -> None:
    rules = parity.rules["tiles"]["rows"]
    assert len(rules) > 100
    for width, height, most, whole, columns, rows, tiles in rules:
        assert tile_grid(width, height, 448, 1, most) == (columns, rows)
        assert columns * rows + (whole and columns * rows > 1) == tiles


def test_pixels_are_the_official_ones_bit_for_bit(parity: Parity) -> None:
    for item in parity.cases:
        row, theirs = parity.encoded(item), parity.inputs[f"{item}.pixel_values"]
        flags = parity.inputs[f"{item}.image_flags"].bool()
        if row.pixels is None:
            tiles = parity.processor().tiles
            assert not bool(flags.any())
            assert tiles is not None
            assert torch.equal(tiles.white(), theirs), item
        else:
            assert bool(flags.all())
            pixels = parity.processor().collate([row]).model_inputs()["pixel_values"]
            assert torch.equal(pixels, theirs), item


def test_pixels_of_transformers_are_a_grey_level_apart_seldom_two(parity: Parity) -> None:
    for item in parity.cases:
        row = parity.encoded(item)
        if row.pixels is None:
            continue
        processor = parity.processor(item, through=True)
        other = processor.encode(parity.samples[item], parity.frames(item))
        assert torch.equal(row.input_ids_S, other.input_ids_S)
        ours, theirs = (
            made_by.collate([made]).model_inputs()["pixel_values"]
            for made_by, made in ((parity.processor(item), row), (processor, other))
        )
        assert difference(theirs, ours) <= 2 * GREY_LEVEL, item
        assert float(((theirs - ours).abs() > GREY_LEVEL).float().mean()) < 1e-3, item
        assert processor.fingerprint != parity.processor(item).fingerprint


def test_frames_of_a_video(parity: Parity) -> None:
    """Their middles are the official ones; drawn ones lie in the official parts, and never at the end of one."""
    for rule in parity.rules["frames"]:
        count, total = rule["n"], rule["vlen"]
        assert middle(total, count) == rule["middle"]
        parts = rule["rand_ranges"]
        draws = np.array([random(total, count, np.random.default_rng(seed)) for seed in range(60)])
        assert draws.shape[1] == count == len(rule["rand_seed7"])
        if all(first < last for first, last in parts):
            first, last = np.array(parts).T
            assert bool(((draws >= first) & (draws < last)).all())
        elif total <= count:
            assert draws.tolist() == [rule["rand_seed7"]] * 60
        else:
            assert all(len(set(row)) == count for row in draws.tolist())


# --- numbers ---------------------------------------------------------------------------------------------


def test_features(parity: Parity, model: Any) -> None:
    tiles = parity.processor().tiles
    assert tiles is not None
    rows = {item: parity.encoded(item).pixels for item in parity.rows}
    pixels = torch.cat([tiles.white() if own is None else tiles.colours.look_up(own) for own in rows.values()])
    with torch.no_grad():
        seen = model.get_image_features(pixels)
    owners = [item for item, own in rows.items() for _ in range(1 if own is None else len(own))]
    assert owners == parity.stated["feature_rows"]
    hidden = parity.expected["vision.hidden"]
    assert difference(seen.last_hidden_state[: len(hidden)], hidden) <= FEATURES
    assert difference(seen.pooler_output, parity.expected["features"]) <= FEATURES


def changed(parity: Parity, change: str) -> Any:
    """The model with one constant of another model's."""
    model = parity.model("sdpa")
    if change == "tower's epsilon":
        for layer in model.model.vision_tower.encoder.layer:
            layer.layernorm_before.eps = layer.layernorm_after.eps = 1e-5
    elif change == "projector's epsilon":
        model.model.multi_modal_projector.layer_norm.eps = 1e-6
    elif change == "tower's activation":
        for layer in model.model.vision_tower.encoder.layer:
            layer.mlp.activation_fn = torch.nn.GELU(approximate="tanh")
    elif change == "projector in bfloat16":
        for parameter in model.model.multi_modal_projector.parameters():
            parameter.data = parameter.data.bfloat16().float()
    elif change == "rotary base":
        rotary = model.model.language_model.rotary_emb
        rotary.inv_freq = 1e4 ** -(torch.arange(0, rotary.inv_freq.numel()) / rotary.inv_freq.numel())
    elif change == "decoder's epsilon":
        for module in model.get_decoder().modules():
            if hasattr(module, "variance_epsilon"):
                module.variance_epsilon = 1e-5
    return model


@pytest.mark.parametrize(
    ("change", "features"),
    [
        ("tower's epsilon", True),
        ("projector's epsilon", True),
        ("tower's activation", True),
        ("projector in bfloat16", True),
        ("rotary base", False),
        ("decoder's epsilon", False),
    ],
)
def test_wrong_constants_are_told_apart(parity: Parity, change: str, features: bool) -> None:
    """The limits are tight enough: each moves the features, or the logits, far beyond them."""
    batch = parity.batch(["image"])
    right, wrong = parity.model("sdpa"), changed(parity, change)
    with torch.no_grad():
        pixels = batch.model_inputs()["pixel_values"]
        seen = [model.get_image_features(pixels).pooler_output for model in (right, wrong)]
        logits = [model(**batch.model_inputs()).logits for model in (right, wrong)]
    if features:
        assert difference(*seen) > 10 * FEATURES
    assert difference(*logits) > 10 * LOGITS


def test_merged_embeddings(parity: Parity, model: Any) -> None:
    seen: list[Any] = []
    handle = model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    with torch.no_grad():
        model(**parity.batch(["image"]).model_inputs())
    handle.remove()
    assert difference(seen[0][0], parity.expected["embeds.image"]) <= FEATURES


def test_loss_of_each_token_and_of_each_row(parity: Parity, model: Any) -> None:
    batch = parity.batch(parity.rows)
    with torch.no_grad():
        logits_BSV = model(**batch.model_inputs()).logits
    token_loss_N = regate.causal_token_loss(logits_BSV, batch.layout.labels_BS)
    assert difference(token_loss_N, parity.expected["per_token_loss"]) <= LOGITS
    counts = (batch.layout.labels_BS != IGNORE).sum(dim=1).tolist()
    singles = torch.stack([part.mean() for part in token_loss_N.split(counts)])
    assert difference(singles, parity.expected["loss.single"]) <= LOSS


def test_a_token_with_the_id_of_the_padding_is_seen(parity: Parity, model: Any) -> None:
    batch = parity.batch(["bang"])
    with torch.no_grad():
        logits_BSV = model(**batch.model_inputs()).logits
        hole = parity.inputs["bang.attention_mask.official_collator"].long()
        official = model(**{**batch.model_inputs(), "attention_mask": hole}).logits
    assert difference(logits_BSV[0, ::3], parity.expected["bang.logits.every3"]) <= LOGITS
    loss = regate.causal_token_loss(logits_BSV, batch.layout.labels_BS).mean()
    assert difference(loss, parity.expected["bang.loss"]) <= LOSS
    theirs = parity.expected["bang.logits.official_hole.every3"]
    seen = hole[0, ::3].bool()
    assert difference(official[0, ::3][seen], theirs[seen]) <= LOGITS
    assert difference(logits_BSV[0, ::3][seen], theirs[seen]) > 1000 * LOGITS


def test_greedy_tokens(parity: Parity, model: Any) -> None:
    for item in sorted(name.split(".")[1] for name in parity.expected if name.endswith(".new_tokens")):
        batch = parity.prompt(item)
        theirs = parity.expected[f"infer.{item}.new_tokens"].long()
        with torch.no_grad():
            first = model(**batch.model_inputs()).logits[0, -1]
            answer = model.generate(**batch.model_inputs(), max_new_tokens=theirs.shape[1], do_sample=False)
        assert difference(first, parity.expected[f"infer.{item}.first_logits"]) <= LOGITS, item
        assert torch.equal(answer[:, batch.input_ids_BS.shape[1] :], theirs), item


# --- packs, losses and training --------------------------------------------------------------------------


def own_parts(batch: Batch, tensor_BS: Tensor) -> Tensor:
    """The rows one behind the other, without padding."""
    return tensor_BS[batch.layout.valid_BS]


def dense(batch: Batch) -> regate.Decision:
    return regate.DenseGate().decide(batch.layout, batch.sample_ids_B, step=0)


def rows_of(model: Any) -> Literal["packed", "padded"]:
    """Plain attention does not know packed rows."""
    return "packed" if model.config._attn_implementation == "sdpa" else "padded"


def losses_of(model: Any, batch: Batch) -> tuple[regate.Decision, Tensor]:
    """The loss of each target, as the loop trains: on a packed row where attention knows them."""
    decision = dense(batch)
    outputs: Literal["active", "predictors"] = "predictors" if rows_of(model) == "packed" else "active"
    elide = regate.attach(model, rows=rows_of(model), outputs=outputs)
    try:
        with elide(decision):
            logits_NV, targets_N = scored_forward(regate.ScoredLM(model), batch, decision)
    finally:
        elide.remove()
    return decision, regate.token_loss(logits_NV, targets_N)


def norm_of(decision: regate.Decision, norm: LossNorm) -> MicroBatchNorm:
    """Of the only micro-batch of the only process."""
    (own,) = norms_of([decision], norm, sum_processes=lambda local: local, processes=1, accumulation=1)
    return own


def test_a_batch_is_the_official_pack(parity: Parity) -> None:
    for place, batch in enumerate(parity.pack_batches):
        official = parity.inputs
        assert torch.equal(own_parts(batch, batch.input_ids_BS), official[f"pack{place}.input_ids"][0].long())
        assert torch.equal(own_parts(batch, batch.layout.labels_BS), official[f"pack{place}.labels"][0].long())
        lengths = batch.layout.valid_BS.sum(dim=1)
        starts = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        assert starts.tolist() == official[f"pack{place}.cu_seqlens"][0].tolist()
        position_BS = torch.arange(batch.layout.kind_BS.shape[1]).expand_as(batch.layout.kind_BS)
        assert torch.equal(own_parts(batch, position_BS), official[f"pack{place}.position_ids"][0].long())
        decision = dense(batch)
        for norm in REDUCTIONS:
            weight_B = norm_of(decision, norm).weight_B
            assert weight_B is not None
            weight_BS = weight_B[:, None] * decision.targets_BS
            theirs = official[f"pack{place}.loss_weight.{norm}"][0]
            assert difference(own_parts(batch, weight_BS), theirs) <= 1e-7


def test_the_weight_of_a_target(parity: Parity) -> None:
    for norm in REDUCTIONS:
        for labels, weight in parity.rules["len2weight"][norm]:
            assert float(weight_of(torch.tensor(labels), norm)) == pytest.approx(weight, rel=1e-12)


def test_packed_rows_are_padded_rows(parity: Parity, model: Any) -> None:
    for place, batch in enumerate(parity.pack_batches):
        with torch.no_grad():
            computed = [model(**batch.model_inputs()).logits]
            elide = regate.attach(model, rows=rows_of(model))
            try:
                with elide(dense(batch)):
                    computed.append(model(**batch.model_inputs()).logits)
                    assert elide.rows == rows_of(model)
            finally:
                elide.remove()
        for logits_BSV in computed:
            theirs = parity.expected[f"pack{place}.logits_every3"]
            assert difference(own_parts(batch, logits_BSV)[::3], theirs) <= LOGITS


def test_losses_of_packs_in_each_reduction(parity: Parity, model: Any) -> None:
    for place, batch in enumerate(parity.pack_batches):
        with torch.no_grad():
            decision, token_loss_N = losses_of(model, batch)
        for norm in REDUCTIONS:
            ours = norm_of(decision, norm).total(decision, token_loss_N)
            assert difference(ours, parity.expected[f"pack{place}.loss.{norm}"]) <= LOSS, (place, norm)


def test_loss_of_unpacked_training(parity: Parity, model: Any) -> None:
    """The official code takes `square` there, whatever it is asked for."""
    with torch.no_grad():
        decision, token_loss_N = losses_of(model, parity.batch(parity.rows))
    ours = norm_of(decision, "square").total(decision, token_loss_N)
    assert difference(ours, parity.expected["loss.batch.square"]) <= LOSS


def train_loss(parity: Parity, model: Any) -> Tensor:
    """The mean of the losses of two packs, as two micro-batches of a step."""
    runs = [losses_of(model, batch) for batch in parity.pack_batches[:2]]
    norms = norms_of(
        [decision for decision, _ in runs],
        "square",
        sum_processes=lambda local: local,
        processes=1,
        accumulation=len(runs),
    )
    return sum(own.total(*run) / len(runs) for own, run in zip(norms, runs, strict=True))  # type: ignore[return-value]


def test_gradients(parity: Parity, model: Any) -> None:
    model.zero_grad(set_to_none=True)
    loss = train_loss(parity, model)
    loss.backward()
    assert difference(loss.detach(), parity.expected["loss.train"]) <= LOSS
    assert parity.stated["no_gradient"] == [name for name, p in model.named_parameters() if p.grad is None] == []
    gradients = parity.official(model, {name: p.grad for name, p in model.named_parameters()})
    norms = parity.grad_norms
    assert norms.keys() == gradients.keys()
    for name, norm in norms.items():
        # A key's bias moves all scores of a query alike: that part of a gradient is nothing but rounding.
        assert float(gradients[name].norm()) == pytest.approx(norm, rel=GRADIENT, abs=1e-7), name
    named = [name.removeprefix("grad.") for name in parity.expected if name.startswith("grad.")]
    assert len(named) >= 8
    for name in named:
        theirs = parity.expected[f"grad.{name}"]
        assert difference(gradients[name].view_as(theirs), theirs) <= GRADIENT * float(theirs.abs().max()), name
    model.zero_grad(set_to_none=True)


def parts_with_decay(model: Any) -> list[ParameterGroup]:
    parts, decayed = parts_of(model), decayed_names(model)
    return [ParameterGroup(part, parts.of(part), None, decayed) for part in PARTS]


def test_decay_groups_are_the_official_trainer_s_by_name(parity: Parity) -> None:
    model = parity.model("eager")
    optimizer = make_optimizer(model, OptimizerRecipe(lr=1e-3, weight_decay=0.05), parts_with_decay(model))
    names = {id(parameter): official_name(name)[0] for name, parameter in model.named_parameters()}
    groups: dict[bool, set[str]] = {True: set(), False: set()}
    for group in optimizer.param_groups:
        groups[group["weight_decay"] > 0] |= {names[id(parameter)] for parameter in group["params"]}
    assert groups[True] == set(parity.decay["decay"])
    assert groups[False] == set(parity.decay["no_decay"])
    assert any(name.endswith("ls1") for name in groups[True])
    trainer: Any = Trainer.get_decay_parameter_names(None, model)  # type: ignore[arg-type]
    assert set(trainer) == decayed_names(model)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(
    ("decay", "limit", "name"), [(0.0, None, "adamw.losses"), (0.5, 1.0, "adamw.losses.wd_clip")]
)
def test_five_steps_of_adamw(parity: Parity, attention: str, decay: float, limit: float | None, name: str) -> None:
    model = parity.model(attention)
    recipe = OptimizerRecipe(lr=1e-3, weight_decay=decay)
    optimizer = make_optimizer(model, recipe, parts_with_decay(model))
    losses = []
    for _ in range(len(parity.expected[name])):
        loss = train_loss(parity, model)
        loss.backward()
        if limit is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), limit)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    assert difference(torch.stack(losses), parity.expected[name]) <= LOSS


def worker(rank: int, world: int, folder: Path) -> None:
    """One pack on each of two processes: its loss and its sum of weights."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=world)
    parity = Parity(Path((folder / "root").read_text()))
    decision, token_loss_N = losses_of(parity.model("sdpa"), parity.batch(parity.packs[rank]))
    local: list[Tensor] = []

    def sum_processes(sums: Tensor) -> Tensor:
        local.append(sums.clone())
        dist.all_reduce(sums)
        return sums

    (own,) = norms_of([decision], "square", sum_processes=sum_processes, processes=world, accumulation=1)
    loss = own.total(decision, token_loss_N).detach()
    torch.save({"loss": loss, "weights": local[0][0].float()}, folder / f"rank-{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="gloo over a file is for Linux here")
def test_two_processes_divide_by_the_mean_of_their_weights(parity: Parity, tmp_path: Path) -> None:
    (tmp_path / "root").write_text(str(parity.root))
    assert forked.run(worker, 2, tmp_path) == [0, 0]
    ranks = [torch.load(tmp_path / f"rank-{rank}.pt", weights_only=True) for rank in (0, 1)]
    for ours, theirs in (("loss", "two_ranks.square"), ("weights", "two_ranks.weight_sums")):
        assert difference(torch.stack([rank[ours] for rank in ranks]), parity.expected[theirs]) <= LOSS


def test_the_official_annotation_through_the_program_s_reader(parity: Parity, tmp_path: Path) -> None:
    """The items of the fixture as a source of a recipe reads them: the same ids and labels."""
    meta = {"items": {"root": "", "annotation": "data.jsonl", "repeat_time": 1}}
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    shutil.copy(parity.root / "data.jsonl", tmp_path)
    shutil.copytree(parity.root / "media", tmp_path / "media")
    section = InternVLData(source="internvl", meta="meta.json", media="media")
    opened = open_data(section, Paths(data=str(tmp_path)), 0)
    samples = {sample.key.removeprefix("items#"): sample for sample in opened.samples}
    assert samples.keys() == parity.cases.keys()
    for item, sample in samples.items():
        row = parity.processor(item).encode(sample, parity.frames(item))
        assert torch.equal(row.input_ids_S, parity.inputs[f"{item}.input_ids"].long()), item
        assert torch.equal(row.labels_S, parity.inputs[f"{item}.labels"].long()), item
