"""The tiny model's own pre-training, stage by stage, as the real models went through it.

(a) tower: the vision tower learns what is where (the counterpart of SigLIP), and is frozen from then on.
(b) backbone: the decoder learns to write the training answers without seeing; its frozen copy is the teacher.
(c) aligned: the projector learns to speak to the decoder on tag lists of other clips.

Each stage is an ordinary checkpoint in its own folder, put there by one rename: it is there whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from harness.common.errors import EnvironmentProblem, StaleError
from harness.common.files import atomic_folder
from harness.common.hashing import digest
from harness.config.model import TinyModel

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.config.recipe import Recipe

SCHEMA: Final = 1
STAGES: Final = ("tower", "backbone", "aligned")
CARD: Final = "stage.json"


@dataclass(frozen=True, slots=True)
class Parts:
    """Where the stages of one tiny model are.

    The folder's name is a digest of all that decides the weights: model, data and seed of the recipe.
    `data_fingerprint` is that of the opened data set, None while it is not known.
    """

    root: Path
    data_fingerprint: str | None = None

    def folder(self, stage: str) -> Path:
        return self.root / stage

    def missing(self) -> list[str]:
        """Stages that are not made yet."""
        return [stage for stage in STAGES if not self._card_path(stage).is_file()]

    def card(self, stage: str) -> dict[str, Any]:
        """What a finished stage tells: seconds, figures, sha256 of its weights.

        Raises:
            EnvironmentProblem: the stage is not made.
            StaleError: it was made by another version of this program, or from other data.
        """
        path = self._card_path(stage)
        if not path.is_file():
            raise EnvironmentProblem(f"{path.parent}: not made yet", hint="`harness prepare` makes it")
        card: dict[str, Any] = json.loads(path.read_text())
        hint = f"remove {self.root} and prepare again"
        if card.get("schema") != SCHEMA:
            raise StaleError(f"{path}: schema {SCHEMA} expected, found {card.get('schema')}", hint=hint)
        if self.data_fingerprint is not None and card["data"] != self.data_fingerprint:
            raise StaleError(f"{path}: made from other data than those that are there now", hint=hint)
        return card

    def weights(self, *stages: str) -> str:
        """One hash over the weights of the stages."""
        return digest([self.card(stage)["weights"] for stage in stages])

    def make(self, stage: str, work: Callable[[Path], dict[str, Any]]) -> None:
        """Run `work`, which fills an empty folder and returns its figures, unless the stage is there."""
        if self._card_path(stage).is_file():
            self.card(stage)
            return
        with atomic_folder(self.folder(stage), keep_existing=True) as folder:
            start = time.monotonic()
            figures = work(folder)
            card = {
                "schema": SCHEMA,
                "stage": stage,
                "data": self.data_fingerprint,
                "weights": hash_weights(folder),
                "seconds": round(time.monotonic() - start, 3),
                "figures": figures,
            }
            (folder / CARD).write_text(json.dumps(card, indent=1) + "\n")

    def _card_path(self, stage: str) -> Path:
        return self.folder(stage) / CARD


def parts_of(recipe: Recipe, data_fingerprint: str | None = None) -> Parts:
    """The folder that belongs to a recipe; both arms of a pair share it."""
    assert isinstance(recipe.model, TinyModel)
    identity = recipe.identity()
    made_from = {"schema": SCHEMA, **{key: identity[key] for key in ("model", "data", "seed")}}
    return Parts(Path(recipe.paths.weights) / f"tiny-{digest(made_from)[:8]}", data_fingerprint)


def hash_weights(folder: Path) -> str:
    """sha256 over the safetensors files of a checkpoint, in name order.

    Raises:
        EnvironmentProblem: there are none.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise EnvironmentProblem(f"{folder}: no safetensors file")
    total = hashlib.sha256()
    for file in files:
        total.update(file.name.encode())
        total.update(hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()
