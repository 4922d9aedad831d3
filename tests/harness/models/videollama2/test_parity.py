"""VideoLLaMA2 computes what the official code computes: features, logits, loss, gradients, training, generation.

`--parity-root` names another fixture of the same format.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file

from harness.models.videollama2.connector import make_connector
from harness.models.videollama2.model import VideoLLaMA2ForConditionalGeneration, our_name
from harness.models.videollama2.sizes import visual_tokens
from tests.harness.worlds.videollama2_fixture import Parity

if TYPE_CHECKING:
    from pathlib import Path

FEATURES, LOGITS, LOSS, GRADIENT, TRAINED = 5e-5, 2e-4, 1e-5, 1e-4, 1e-4


@pytest.fixture(scope="module")
def parity(parity_root: Path) -> Parity:
    return Parity(parity_root)


@pytest.fixture(scope="module", params=["eager", "sdpa"])
def model(request: pytest.FixtureRequest, parity: Parity) -> VideoLLaMA2ForConditionalGeneration:
    found = parity.model(request.param)
    assert found.config.text_config._attn_implementation == request.param
    assert found.config.vision_config._attn_implementation == request.param
    return found


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max())


def test_visual_features(parity: Parity, model: VideoLLaMA2ForConditionalGeneration) -> None:
    rows = range(len(parity.modal))
    clips = [parity.pixels(row) for row in rows]
    with torch.no_grad():
        features = model.model.get_video_features(torch.cat(clips), [len(clip) for clip in clips])
        selected = model.model.vision_tower(parity.pixels(0))
    assert difference(features, parity.expected["mm_features"]) <= FEATURES
    assert difference(selected, parity.expected["vision.selected.sample0"]) <= FEATURES
    assert features.shape[1] == model.config.visual_tokens
    layers = model.config.vision_config.num_hidden_layers
    assert int(parity.expected["vision.n_hidden_states"]) == layers + 1


def test_an_image_given_once_is_the_repeated_one(parity: Parity, model: VideoLLaMA2ForConditionalGeneration) -> None:
    if "image" not in parity.modal:
        pytest.skip("this fixture has no picture")
    image, frames = parity.pixels(parity.modal.index("image")), model.config.num_frames
    with torch.no_grad():
        once = model.model.get_video_features(image, [1])
        repeated = model.model.get_video_features(image.expand(1, frames, *image.shape[1:]))
    assert difference(once, repeated) <= FEATURES / 10


def test_merged_rows_logits_and_loss(parity: Parity, model: VideoLLaMA2ForConditionalGeneration) -> None:
    batch = parity.batch(model)
    assert torch.equal(batch["labels"], parity.expected["merged.labels"])
    assert torch.equal(batch["attention_mask"].bool(), parity.expected["merged.attention_mask"].bool())
    with torch.no_grad():
        out = model(**batch)
        assert difference(out.logits[batch["attention_mask"].bool()], parity.expected["logits.valid"]) <= LOGITS
        assert abs(float(out.loss) - float(parity.expected["loss"])) <= LOSS
        for row, theirs in enumerate(parity.expected["loss.single"].tolist()):
            assert abs(float(model(**parity.batch(model, [row])).loss) - theirs) <= LOSS


def test_gradients_and_what_is_trainable(parity: Parity, model: VideoLLaMA2ForConditionalGeneration) -> None:
    model.zero_grad()
    model(**parity.batch(model)).loss.backward()
    norms = {our_name(name): norm for name, norm in parity.json("grad_norms.json").items()}
    trainable = {name: value for name, value in model.named_parameters() if value.requires_grad}
    assert set(trainable) == set(norms)
    for name, value in trainable.items():
        assert value.grad is not None
        assert float(value.grad.norm()) == pytest.approx(norms[name], rel=GRADIENT)
    for name, theirs in parity.expected.items():
        if name.startswith("grad."):
            ours = trainable[our_name(name.removeprefix("grad."))].grad
            assert ours is not None
            assert difference(ours, theirs) <= GRADIENT * float(theirs.abs().max())
    model.zero_grad()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_five_steps_of_adamw(parity: Parity, attention: str) -> None:
    model = parity.model(attention)
    batch = parity.batch(model)
    trainable = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-3, weight_decay=0.0)
    for theirs in parity.expected["adamw.losses"].tolist():
        loss = model(**batch).loss
        assert abs(loss.item() - theirs) <= TRAINED
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_greedy_tokens(parity: Parity, model: VideoLLaMA2ForConditionalGeneration) -> None:
    tokens, placeholder = model.config.visual_tokens, model.config.placeholder_token_id
    ids = parity.expected["infer.input_ids"][0].tolist()
    wide = torch.tensor([[i for t in ids for i in ([placeholder] * tokens if t < 0 else [t])]])
    pixels = (parity.expected["infer.pixel_u8"].float() / 255 - 0.5) / 0.5
    inputs = {"input_ids": wide, "attention_mask": torch.ones_like(wide), "pixel_values": pixels[None]}
    with torch.no_grad():
        assert difference(model(**inputs).logits[0, -1], parity.expected["infer.last_logits"]) <= LOGITS
    theirs = parity.expected["infer.new_tokens"]
    made = model.generate(**inputs, max_new_tokens=theirs.shape[1], do_sample=False)
    assert torch.equal(made[:, wide.shape[1] :], theirs)


def test_every_connector(parity: Parity) -> None:
    found = load_file(parity.root / "connectors.safetensors")
    kinds = {name.split("/")[0] for name in found}
    assert kinds
    for kind in sorted(kinds):
        state = {n.split("/state/")[1]: v for n, v in found.items() if n.startswith(f"{kind}/state/")}
        features, theirs = found[f"{kind}/x"], found[f"{kind}/y"]
        clips, frames, patches, channels = features.shape
        connector = make_connector(kind, channels, theirs.shape[-1])
        connector.load_state_dict(state)
        with torch.no_grad():
            ours = connector(features.flatten(0, 1), [frames] * clips, frames)
        assert difference(ours, theirs) <= FEATURES, kind
        assert ours.shape[1] == visual_tokens(kind, frames, int(patches**0.5)), kind


@pytest.mark.parametrize("loaded", [True, False], ids=["loaded", "built"])
def test_what_is_saved_is_an_official_folder(parity: Parity, tmp_path: Path, loaded: bool) -> None:
    """Names, shapes and bytes of the tensors; the config reads back to the same sizes."""
    model = parity.model()
    if not loaded:
        state = model.state_dict()
        model = VideoLLaMA2ForConditionalGeneration(model.config)
        model.load_state_dict(state)
    model.save_pretrained(tmp_path)
    ours, theirs = load_file(tmp_path / "model.safetensors"), load_file(parity.root / "model.safetensors")
    assert {name: list(value.shape) for name, value in ours.items()} == parity.json("state_dict_shapes.json")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    written = json.loads((tmp_path / "config.json").read_text())
    ignored = {"transformers_version", "sliding_window"}  # unused by the model, which says use_sliding_window: false
    for key, value in parity.config.items():
        assert key in ignored or written[key] == value, key
    again = Parity(tmp_path).model()
    again.set_attn_implementation(model.config._attn_implementation)
    with torch.no_grad():
        pair = [found(**parity.batch(found)).logits for found in (model, again)]
    assert difference(*pair) == 0


def test_a_batch_of_text_alone_reaches_every_trainable_tensor(parity: Parity) -> None:
    """As in the official code, so that processes stay in step; the loss is that without the black picture."""
    model = parity.model().train()
    row = next((r for r in range(len(parity.modal)) if min(parity.text(r)[0]) >= 0), None)
    if row is None:
        pytest.skip("this fixture has no row of text alone")
    loss = model(**parity.batch(model, [row])).loss
    assert abs(loss.item() - float(parity.expected["loss.single"][row])) <= LOSS
    loss.backward()
    assert all(value.grad is not None for value in model.parameters() if value.requires_grad)
    assert all(not value.grad.any() for value in model.model.mm_projector.parameters())


def test_activation_checkpointing_changes_nothing(parity: Parity) -> None:
    norms = []
    for checkpointing in (False, True):
        model = parity.model().train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            staged = hasattr(model.model.mm_projector, "s1")
            assert getattr(model.model.mm_projector, "gradient_checkpointing", False) == staged
        loss = model(**parity.batch(model)).loss
        loss.backward()
        grads = [value.grad.norm() for value in model.parameters() if value.requires_grad]
        norms.append([float(loss.detach()), *map(float, grads)])
    assert norms[1] == pytest.approx(norms[0], rel=1e-6)
