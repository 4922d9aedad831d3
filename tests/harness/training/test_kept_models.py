"""A model that is kept for evaluation is held to what was saved."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from harness.common.errors import DataError
from harness.training.kept_models import DIGESTS, check_model, seal_model

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "run" / "checkpoints" / "step-000002"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "tokenizer.json").write_text("{}")
    seal_model(folder)
    check_model(folder)
    return folder


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_file_that_changed_or_is_gone_is_named(model: Path, name: str) -> None:
    (model / name).write_bytes(b"weightt")
    with pytest.raises(DataError, match=f"step-000002: {name} is missing or has changed"):
        check_model(model)
    (model / name).unlink()
    with pytest.raises(DataError, match=f"step-000002: {name} is missing or has changed"):
        check_model(model)


def test_a_model_of_an_earlier_version_is_taken_as_it_is(model: Path) -> None:
    (model / DIGESTS).unlink()
    check_model(model)
    (model / "model.safetensors").unlink()
    with pytest.raises(DataError, match="cannot be read as the digests of a kept model"):
        check_model(model)
