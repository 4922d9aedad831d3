"""VideoChat2 computes what the official code computes: ids, labels, visual tokens, logits, loss, gradients, answers.

`--parity-root` names another fixture of the same format.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from harness.data.sample import Media, Sample, Turn
from harness.models.videochat2.checkpoint_names import our_name
from harness.models.videochat2.config import UMTConfig
from harness.models.videochat2.image_processing import tile_grid
from harness.models.videochat2.vision import position_table
from tests.harness.worlds.videochat2_fixture import Parity, loss_of

if TYPE_CHECKING:
    from pathlib import Path

    from peft import PeftModel

VISUAL, LOGITS, LOSS, GRADIENT = 5e-5, 5e-4, 1e-4, 1e-3


@pytest.fixture(scope="module")
def parity(videochat2_root: Path) -> Parity:
    return Parity(videochat2_root)


@pytest.fixture(scope="module", params=["eager", "sdpa"])
def model(request: pytest.FixtureRequest, parity: Parity) -> PeftModel:
    found = parity.model(request.param)
    config = found.get_base_model().config
    parts = (config.text_config, config.vision_config, config.qformer_config)
    assert all(part._attn_implementation == request.param for part in parts)
    return found


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max())


def inner(model: PeftModel) -> Any:
    return model.get_base_model().model


def test_ids_labels_and_masks_are_the_official_ones(parity: Parity) -> None:
    assert parity.with_logits
    for case in parity.with_logits:
        batch, own = parity.batch(case), parity.cases[case]
        assert torch.equal(batch.layout.labels_BS, parity.labels(case)), case
        assert torch.equal(batch.inputs["attention_mask"], parity.mask(case)), case
        assert int((batch.layout.labels_BS[:, 1:] != -100).sum()) == own["n_supervised"]
        assert batch.inputs["bos_as_ones"].tolist() == [own["bos_row_is_ones"]] * len(own["prompts"])
        text_BS = batch.inputs["attention_mask"].bool() & (batch.layout.kind_BS != 2)
        for row, ids in enumerate(own["ids"]):
            ours = batch.input_ids_BS[row][text_BS[row]].tolist()
            assert ours[1:] == (ids["before"] + ids["after"])[: len(ours) - 1], case
            assert len(ours) - 1 == min(len(ids["before"] + ids["after"]), own["max_txt_len"] - 1)


def test_instructions_are_padded_on_the_left_and_cut_on_the_left(parity: Parity) -> None:
    cases = [case for case in parity.cases if f"{case}.qformer_input_ids" in parity.tensors]
    assert cases
    for case in cases:
        inputs = parity.batch(case).model_inputs()
        for name in ("qformer_input_ids", "qformer_attention_mask"):
            assert torch.equal(inputs[name], parity.tensors[f"{case}.{name}"].long()), (case, name)


def test_position_tables(parity: Parity, model: PeftModel) -> None:
    """The fixture holds every n-th position of each."""
    vision = inner(model).vision
    names = [name for name in parity.tensors if "pos_embed_sample" in name]
    assert len(names) >= 2
    for name in names:
        frames = 1 if name.startswith("img") else int(name.rpartition(".t")[2])
        table, theirs = vision.positions(frames, torch.device("cpu")), parity.tensors[name]
        assert torch.equal(table, position_table(vision.config, frames))
        samples = (table[:, ::every] for every in range(1, table.shape[1]))
        nearest = min(difference(one, theirs) for one in samples if one.shape == theirs.shape)
        assert nearest <= VISUAL / 10, name


def test_pictures_of_another_size_get_the_trained_table_stretched() -> None:
    """No fixture has one: the same number of patches keeps it, more patches lie between the trained ones."""
    small, trained, large = (
        position_table(UMTConfig(hidden_size=8, image_size=size, patch_size=patch), 4)
        for size, patch in ((112, 8), (224, 16), (448, 16))
    )
    assert torch.equal(small, trained)
    assert list(large.shape) == [1, 4 * 28 * 28, 8]
    blocks = large.view(4, 14, 2, 14, 2, 8).mean(dim=(2, 4))
    inner_TGGC = (blocks - trained.view(4, 14, 14, 8))[:, 2:-2, 2:-2]
    assert float(inner_TGGC.abs().max()) < 0.1


def test_visual_tokens(parity: Parity, model: PeftModel) -> None:
    cases = [case for case in parity.cases if f"{case}.visual_tokens" in parity.tensors]
    for case in cases:
        inputs = parity.batch(case).model_inputs()
        names = ("pixel_values", "frame_counts", "qformer_input_ids", "qformer_attention_mask")
        with torch.no_grad():
            tokens = inner(model).get_video_features(*(inputs[name] for name in names))
        assert difference(tokens, parity.tensors[f"{case}.visual_tokens"]) <= VISUAL, case
        if f"{case}.vision_out_first_last8" in parity.tensors:
            clips = torch.stack(inputs["pixel_values"].split(inputs["frame_counts"]))
            with torch.no_grad():
                seen = inner(model).vision_layernorm(inner(model).vision(clips))
            assert list(seen.shape) == parity.cases[case]["vision_out_shape"]
            ends = torch.cat([seen[:, :8], seen[:, -8:]], dim=1)
            assert difference(ends, parity.tensors[f"{case}.vision_out_first_last8"]) <= VISUAL, case
            assert float(seen.abs().mean()) == pytest.approx(parity.cases[case]["vision_out_mean_abs"], rel=1e-5)


def test_logits_and_loss(parity: Parity, model: PeftModel) -> None:
    for case in parity.with_logits:
        batch = parity.batch(case)
        with torch.no_grad():
            out = model(**batch.model_inputs(), labels=batch.layout.labels_BS)
        assert parity.close(case, out.logits) <= LOGITS, case
        assert abs(float(out.loss) - parity.cases[case]["loss"]) <= LOSS, case
        theirs = parity.tensors[f"{case}.per_token_loss"]
        assert difference(loss_of(out.logits, batch.layout.labels_BS), theirs) <= LOGITS, case


def test_gradients_and_what_is_trained(parity: Parity, model: PeftModel) -> None:
    """All official gradients, and no other parameter has one."""
    batch = parity.batch("video8")
    model.zero_grad()
    model(**batch.model_inputs(), labels=batch.layout.labels_BS).loss.backward()
    base = model.get_base_model()
    norms = {our_name(name): norm for name, norm in parity.cases["video8"]["grad_norms"].items()}
    trained = {name: value for name, value in base.named_parameters() if value.requires_grad}
    assert set(trained) == set(norms)
    for name, value in trained.items():
        assert value.grad is not None
        # A key's bias moves all scores of a query alike: its gradient is nothing but rounding.
        assert float(value.grad.norm()) == pytest.approx(norms[name], rel=GRADIENT, abs=1e-6), name
    for name, theirs in parity.tensors.items():
        if name.startswith("video8.grad."):
            ours = trained[our_name(name.removeprefix("video8.grad."))].grad
            assert ours is not None
            assert difference(ours, theirs) <= GRADIENT * float(theirs.abs().max()), name
    model.zero_grad()


def test_greedy_tokens(parity: Parity, model: PeftModel) -> None:
    """The demonstration's prompt: the real `<s>`, the instruction for the QFormer alone, an answer already begun."""
    own = parity.cases["infer"]
    head, tail = own["prompt"].split("[/INST] [INST] ")[1].split(" [/INST] ")
    turns = (Turn("system", own["instruction"]), Turn("user", f"<media:0>\n{head}"))
    sample = Sample(1, "infer", (Media("video", parity.root),), turns)
    clip = parity.clips("infer")[0]
    processor = parity.processor("infer", clip.shape[0])
    batch = processor.collate([processor.prompt(sample, [clip], opening=tail, speak=False)])
    before, after = own["segment_ids"]
    places = batch.input_ids_BS[0].tolist()
    visual = inner(model).config.visual_tokens
    assert places == before + [processor.placeholder_id] * visual + after
    assert len(places) == own["num_embeds"]
    theirs = parity.tensors["infer.generated_ids"].long()
    with torch.no_grad():
        assert difference(model(**batch.model_inputs()).logits, parity.tensors["infer.logits"]) <= LOGITS
        made = model.generate(**batch.model_inputs(), max_new_tokens=theirs.shape[1], do_sample=False)
        slow = model.generate(**batch.model_inputs(), max_new_tokens=4, do_sample=False, use_cache=False)
    assert torch.equal(made[:, len(places) :], theirs)
    assert torch.equal(slow[:, len(places) :], theirs[:, :4])


def test_wrong_variants_are_told_apart(parity: Parity, model: PeftModel) -> None:
    """The limits are tight enough: what users get wrong moves the logits far beyond them."""
    batch = parity.batch("video8")
    changes: dict[str, dict[str, Any]] = {
        "the real <s>": {"bos_as_ones": torch.zeros_like(batch.inputs["bos_as_ones"])},
        "no instruction": {"qformer_input_ids": batch.inputs["qformer_input_ids"][:, -2:]},
        "right padding": {},
    }
    changes["no instruction"]["qformer_attention_mask"] = None
    shift = (batch.inputs["qformer_attention_mask"] == 0).sum(dim=1).tolist()
    assert max(shift) > 0
    for name in ("qformer_input_ids", "qformer_attention_mask"):
        rows = zip(batch.inputs[name], shift, strict=True)
        changes["right padding"][name] = torch.stack([row.roll(-padding) for row, padding in rows])
    for what, change in changes.items():
        with torch.no_grad():
            logits = model(**{**batch.model_inputs(), **change}).logits
        assert parity.close("video8", logits) > 100 * LOGITS, what


def test_conversations_are_built_as_the_official_ones(parity: Parity) -> None:
    from harness.models.videochat2.conversation import training_conversation

    seen = 0
    for rule in parity.rules["prompts"]:
        if rule.get("msg") or rule.get("return_question_instruction"):
            continue  # no official configuration asks for these
        kind: Any = {"<Video>": "video", "<Image>": "image", None: None}[rule["start"]]
        pairs = rule["qa"]
        system = (Turn("system", pairs[0]["i"]),) if pairs[0]["i"] else ()
        turns = [turn for pair in pairs for turn in (Turn("user", pair["q"]), Turn("assistant", pair["a"]))]
        if kind:
            turns[0] = Turn("user", f"<media:0>\n{turns[0].text}" if turns[0].text else "<media:0>")
        media = (Media(kind, parity.root),) if kind else ()
        told = training_conversation(Sample(1, "rule", media, (*system, *turns)), 8)
        assert told.before + told.after == rule["conversation"]
        assert told.instruction == rule["instruction"]
        seen += 1
    assert seen >= 4


def test_tiles_of_the_hd_variant(parity: Parity) -> None:
    side = parity.official["vision_encoder"]["img_size"]
    for rule in parity.rules["hd_sizes_hd_num_6"]:
        high, wide = tile_grid(rule["h"], rule["w"], side)
        assert [high * side, wide * side] == rule["out"], rule
