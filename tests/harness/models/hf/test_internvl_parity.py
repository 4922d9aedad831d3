"""InternVL computes what the official code computes: ids, labels, tiles, pixels, features, logits, losses, gradients,
answers. `--parity-root` names another fixture of the same format.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

import regate
from harness.models.hf.internvl.chat import SYSTEM
from harness.models.hf.internvl.image_processing import tile_grid
from regate.types import IGNORE
from tests.harness.worlds.internvl_fixture import Parity

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

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
            assert torch.equal(batch.inputs["pixel_values"], parity.inputs[f"infer.{item}.pixel_values"]), item


def test_words_of_the_rules(parity: Parity) -> None:
    tiles = parity.processor().tiles
    assert tiles is not None
    assert parity.rules["system_message"] == SYSTEM
    for opened, rule in ((False, "video_prefix_training"), (True, "video_prefix_evaluation")):
        own = [parity.rules[rule].format(i=place + 1).replace("<image>", tiles.picture_text(1)) for place in range(2)]
        assert tiles.video_text(2, opened=opened) == "\n".join(own)


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
            assert torch.equal(row.pixels, theirs), item


def test_pixels_of_transformers_are_a_grey_level_apart_seldom_two(parity: Parity) -> None:
    for item in parity.cases:
        row = parity.encoded(item)
        if row.pixels is None:
            continue
        processor = parity.processor(item, through=True)
        other = processor.encode(parity.samples[item], parity.frames(item))
        assert torch.equal(row.input_ids_S, other.input_ids_S)
        assert other.pixels is not None
        assert 0 < difference(other.pixels, row.pixels) <= 2 * GREY_LEVEL, item
        assert float(((other.pixels - row.pixels).abs() > GREY_LEVEL).float().mean()) < 1e-3, item
        assert processor.fingerprint != parity.processor(item).fingerprint


# --- numbers ---------------------------------------------------------------------------------------------


def test_features(parity: Parity, model: Any) -> None:
    tiles = parity.processor().tiles
    assert tiles is not None
    rows = {item: parity.encoded(item).pixels for item in parity.rows}
    pixels = torch.cat([tiles.white() if own is None else own for own in rows.values()])
    with torch.no_grad():
        seen = model.get_image_features(pixels)
    owners = [item for item, own in rows.items() for _ in range(1 if own is None else len(own))]
    assert owners == parity.stated["feature_rows"]
    hidden = parity.expected["vision.hidden"]
    assert difference(seen.last_hidden_state[: len(hidden)], hidden) <= FEATURES
    assert difference(seen.pooler_output, parity.expected["features"]) <= FEATURES


def test_merged_embeddings(parity: Parity, model: Any) -> None:
    seen: list[Any] = []
    handle = model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    with torch.no_grad():
        model(**parity.batch(["image"]).inputs)
    handle.remove()
    assert difference(seen[0][0], parity.expected["embeds.image"]) <= FEATURES


def test_loss_of_each_token_and_of_each_row(parity: Parity, model: Any) -> None:
    batch = parity.batch(parity.rows)
    with torch.no_grad():
        logits_BSV = model(**batch.inputs).logits
    token_loss_N = regate.causal_token_loss(logits_BSV, batch.layout.labels_BS)
    assert difference(token_loss_N, parity.expected["per_token_loss"]) <= LOGITS
    counts = (batch.layout.labels_BS != IGNORE).sum(dim=1).tolist()
    singles = torch.stack([part.mean() for part in token_loss_N.split(counts)])
    assert difference(singles, parity.expected["loss.single"]) <= LOSS


def test_a_token_with_the_id_of_the_padding_is_seen(parity: Parity, model: Any) -> None:
    batch = parity.batch(["bang"])
    with torch.no_grad():
        logits_BSV = model(**batch.inputs).logits
        hole = parity.inputs["bang.attention_mask.official_collator"].long()
        official = model(**{**batch.inputs, "attention_mask": hole}).logits
    assert difference(logits_BSV[0, ::3], parity.expected["bang.logits.every3"]) <= LOGITS
    loss = regate.causal_token_loss(logits_BSV, batch.layout.labels_BS).mean()
    assert difference(loss, parity.expected["bang.loss"]) <= LOSS
    theirs = parity.expected["bang.logits.official_hole.every3"]
    seen = hole[0, ::3].bool()
    assert difference(official[0, ::3][seen], theirs[seen]) <= LOGITS
    assert difference(logits_BSV[0, ::3][seen], theirs[seen]) > 1000 * LOGITS


def test_greedy_tokens(parity: Parity, model: Any) -> None:
    for item in ("image", "video", "text"):
        batch = parity.prompt(item)
        theirs = parity.expected[f"infer.{item}.new_tokens"].long()
        with torch.no_grad():
            first = model(**batch.inputs).logits[0, -1]
            answer = model.generate(**batch.inputs, max_new_tokens=theirs.shape[1], do_sample=False)
        assert difference(first, parity.expected[f"infer.{item}.first_logits"]) <= LOGITS, item
        assert torch.equal(answer[:, batch.input_ids_BS.shape[1] :], theirs), item
