"""Another multimodal model as the teacher that sees the pictures (`gate.reference.pictures: NAME`): of which family
it is, by its own config.json, and its sizes. No torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from harness.common.errors import EnvironmentProblem
from harness.common.files import read_json
from harness.config.model import HFModel, TinyModel
from harness.models.hf import sizes as hf_sizes
from harness.models.tiny import sizes as tiny_sizes

if TYPE_CHECKING:
    from harness.config.recipe import Recipe
    from harness.models.footprint import Footprint

TINY: Final = "regate_tiny_vlm"
"""`model_type` of the tiny model's checkpoints."""
_PUBLISHED_INTERNVL: Final = "internvl_chat"


def name_of_vlm(recipe: Recipe) -> str | None:
    """The name of another multimodal teacher; None where the recipe has none."""
    gate = recipe.gate
    if gate is None or not gate.needs_reference or not isinstance(gate.reference.pictures, str):
        return None
    return gate.reference.pictures


def folder_of_vlm(recipe: Recipe) -> Path:
    name = name_of_vlm(recipe)
    assert name is not None
    return Path(recipe.paths.weights) / name


def recipe_of_vlm(recipe: Recipe) -> Recipe:
    """The recipe with the other model in place of the student, and no gate.

    Raises:
        EnvironmentProblem: its folder holds no model of transformers whose parts are known, and no tiny one.
    """
    name, folder = name_of_vlm(recipe), folder_of_vlm(recipe)
    assert name is not None
    config = read_json(folder / "config.json", "the settings of a model")
    kind = config.get("model_type")
    if kind == TINY:
        return recipe.model_copy(update={"model": _tiny(config), "gate": None})
    if kind not in (*hf_sizes.FAMILIES, _PUBLISHED_INTERNVL):
        raise EnvironmentProblem(
            f"gate.reference.pictures: {folder} is a {kind}, and not a multimodal model that can be its teacher",
            hint=f"known are {', '.join(hf_sizes.FAMILIES)} and kept models of the tiny family; true takes the "
            "student's own starting weights",
        )
    return recipe.model_copy(update={"model": HFModel(adapter="hf", checkpoint=name), "gate": None})


def footprint_of_vlm(recipe: Recipe) -> Footprint | None:
    """Its sizes; None where it is not there.

    Raises:
        EnvironmentProblem: as `recipe_of_vlm`.
    """
    if not (folder_of_vlm(recipe) / "config.json").is_file():
        return None
    other = recipe_of_vlm(recipe)
    return tiny_sizes.footprint_of(other) if isinstance(other.model, TinyModel) else hf_sizes.footprint_of(other)


def _tiny(config: dict[str, Any]) -> TinyModel:
    text = config["text_config"]
    return TinyModel(
        adapter="tiny",
        hidden=text["hidden_size"],
        layers=text["num_hidden_layers"],
        heads=text["num_attention_heads"],
        frames_a_token=config["frames_a_token"],
        cells_a_token=config["cells_a_token"],
    )


__all__ = ["TINY", "folder_of_vlm", "footprint_of_vlm", "name_of_vlm", "recipe_of_vlm"]
