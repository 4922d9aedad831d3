"""An official VideoChat2 file evaluated as it is, without a training before it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.common.errors import EnvironmentProblem
from harness.common.progress import Progress
from harness.config.evaluation import EvaluationRecipe
from harness.config.weight_files import missing_checkpoint
from harness.data.sample import Media
from harness.evaluation.evaluate import checkpoint_digest
from harness.evaluation.lmms.generation import Limits
from harness.evaluation.lmms.scorer import Request, Scorer, Shown
from harness.evaluation.standalone import evaluate_standalone, weights_of
from harness.models import evaluated_for
from harness.models.videochat2.official import OfficialVideoChat2
from tests.harness.worlds.videochat2_fixture import Parity

FIXTURE = Path(__file__).parents[2] / "fixtures" / "videochat2"
FILE = "official_stage3.safetensors"


@pytest.fixture(scope="module")
def parity() -> Parity:
    return Parity(FIXTURE)


def document(folder: Path, *, weights: Path = FIXTURE, **model: Any) -> EvaluationRecipe:
    own = Parity(FIXTURE).official
    lora = {"rank": own["lora_r"], "alpha": own["lora_alpha"], "dropout": own["lora_dropout"]}
    known = {"adapter": "videochat2", "checkpoint": FILE, "language_model": own["mistral_model_path"], "lora": lora}
    content = {
        "kind": "evaluation",
        "name": "alone",
        "model": {**known, "colours": "imagenet", **model},
        "frames": 8,
        "precision": "float32",
        "benchmarks": ["mvbench"],
        "paths": {"weights": str(weights), "data": str(folder / "data"), "results": str(folder / "results")},
    }
    return EvaluationRecipe.model_validate_json(json.dumps(content))


def official(recipe: EvaluationRecipe, parity: Parity) -> OfficialVideoChat2:
    """The fixture's vision transformer has fewer heads than the published one, which its tensors do not tell."""
    model = evaluated_for(recipe)
    assert isinstance(model, OfficialVideoChat2)
    model.files = replace(model.files, vision_heads=parity.files.vision_heads)
    return model


@pytest.mark.parametrize("merged", [False, True])
def test_an_official_file_loads_and_answers(tmp_path: Path, parity: Parity, merged: bool) -> None:
    """The evaluation answers as the model of the parity tests does, which computes as the official code."""
    recipe = document(tmp_path, merged=merged)
    assert missing_checkpoint(recipe) == []
    model = official(recipe, parity)
    assert (model.name, model.frame_rule) == ("videochat2", "mvbench")
    loaded = model.load(FIXTURE / FILE)
    clip = parity.clips("infer")[0]
    media = (Media("video", Path("clip")),)
    request = Request("q", (), "What is the person doing?", limits=Limits(6, ()), show=lambda: Shown(media, [clip]))
    scorer = Scorer(model, loaded, lambda media: clip, batch_size=1)
    ((text, tokens),) = next(iter(scorer.answers([{0: request}]))).values()
    row = model.processor().encode_prompt(_sample(request, media), [clip])
    inputs = model.processor().collate([row]).model_inputs()
    plain: Any = parity.model()
    with torch.no_grad():
        ids = plain.generate(**inputs, max_new_tokens=6, do_sample=False, eos_token_id=model.processor().end_id)
    new = [int(i) for i in ids[0][-tokens:]] if tokens else []
    assert 0 < tokens <= 6
    assert text == model.processor().decode(new)


def _sample(request: Request, media: tuple[Media, ...]) -> Any:
    from harness.data.sample import Sample, Turn

    return Sample(1, request.key, media, (Turn("user", f"<media:0>\n{request.prompt}"),))


def test_hd_and_colours_reach_the_pictures(tmp_path: Path, parity: Parity) -> None:
    hd = official(document(tmp_path, hd=True, colours="clip", bos_as_ones=False), parity).processor()
    plain = official(document(tmp_path), parity).processor()
    assert (hd.pixels.hd, plain.pixels.hd) == (True, False)
    assert (hd.bos_as_ones, plain.bos_as_ones) == (False, True)
    assert (hd.pixels.colours, plain.pixels.colours) == ("clip", "imagenet")
    assert hd.fingerprint != plain.fingerprint


def test_every_missing_file_is_named(tmp_path: Path) -> None:
    recipe = document(tmp_path, weights=tmp_path, checkpoint="stage3.pth")
    message = "\n".join(missing_checkpoint(recipe))
    assert len(missing_checkpoint(recipe)) == 6
    assert "stage3.pth: from OpenGVLab/VideoChat2_stage3_Mistral_7B" in message
    assert "named by model.checkpoint" in message
    assert "vocab.txt" in message
    with pytest.raises(EnvironmentProblem, match="weights are missing"):
        evaluate_standalone(recipe, Progress(quiet=True), child=("/nonexistent",))


def test_the_weights_are_those_of_the_base_too(tmp_path: Path) -> None:
    """The same file on another language model is another model."""
    weights = tmp_path / "weights"
    weights.mkdir()
    for name in (FILE, "mistral", "bert-base-uncased"):
        (weights / name).symlink_to(FIXTURE / name)
    recipe = document(tmp_path, weights=weights)
    before = weights_of(recipe)
    assert before == weights_of(document(tmp_path))
    assert before != checkpoint_digest(FIXTURE / FILE)
    (weights / "mistral").unlink()
    (weights / "mistral").mkdir()
    for file in (FIXTURE / "mistral").iterdir():
        content = file.read_bytes()
        (weights / "mistral" / file.name).write_bytes(content[:-1] + b"\0" if "safetensors" in file.name else content)
    assert weights_of(recipe) != before
