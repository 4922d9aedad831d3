"""Weights that are generated here: folders of artifacts, and the toy models of the published families.

Each artifact is put in its place by one rename: it is there whole or not at all.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from harness.common.errors import DataError, EnvironmentProblem, StaleError
from harness.common.files import atomic_folder, read_json, write_json
from harness.common.hashing import digest, file_digest, has_digest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from harness.common.progress import Progress
    from harness.config.recipe import Recipe
    from harness.data.sources import DataSet

SCHEMA: Final = 1
"""Of the card."""
CARD: Final = "stage.json"


@dataclass(frozen=True, slots=True)
class ArtifactFolder:
    """Where the generated weights of a model are, each artifact an ordinary checkpoint in a folder of its own.

    Attributes:
        names: of the artifacts, in the order in which they are made.
        data_fingerprint: that of the opened data set, None while it is not known.
    """

    root: Path
    names: tuple[str, ...]
    data_fingerprint: str | None = None

    def folder(self, name: str) -> Path:
        return self.root / name

    def missing(self) -> list[str]:
        """One line for each artifact that is not made yet.

        Raises:
            DataError: a file of one that is made is not as it was made.
            StaleError: see `card`.
        """
        lines = []
        for name in self.names:
            if self._card_path(name).is_file():
                self.card(name)
            else:
                lines.append(f"{self.folder(name)}: made by `harness prepare`")
        return lines

    def card(self, name: str) -> dict[str, Any]:
        """What a finished artifact tells: seconds, figures, sha256 of its weights.

        Raises:
            DataError: a file of it is not as it was made.
            EnvironmentProblem: it is not made.
            StaleError: it was made by another version of this program, or from other data.
        """
        path = self._card_path(name)
        if not path.is_file():
            raise EnvironmentProblem(f"{path.parent}: not made yet", hint="`harness prepare` makes it")
        hint = f"remove {self.root} and prepare again"
        shape = {"schema": int, "data": str | None, "weights": str}
        card = read_json(path, "the card of an artifact", shape=shape, hint=hint)
        if card.get("schema") != SCHEMA:
            raise StaleError(f"{path}: schema {SCHEMA} expected, found {card.get('schema')}", hint=hint)
        wanted = card.get("files", {}).items()
        changed = [name for name, sha256 in wanted if not has_digest(path.parent / name, sha256)]
        if changed:
            raise DataError(f"{path.parent}: {', '.join(changed)} is missing or has changed (sha256)", hint=hint)
        if self.data_fingerprint is not None and card["data"] != self.data_fingerprint:
            raise StaleError(f"{path}: made from other data than those that are there now", hint=hint)
        return card

    def weights(self, *names: str) -> str:
        """One hash over the weights of the artifacts."""
        return digest([self.card(name)["weights"] for name in names])

    def make(self, name: str, work: Callable[[Path], dict[str, Any]]) -> None:
        """Run `work`, which fills an empty folder and returns its figures, unless the artifact is there."""
        if self._card_path(name).is_file():
            self.card(name)
            return
        with atomic_folder(self.folder(name), keep_existing=True) as folder:
            start = time.monotonic()
            figures = work(folder)
            card = {
                "schema": SCHEMA,
                "stage": name,
                "data": self.data_fingerprint,
                "weights": hash_weights(folder),
                "files": _file_digests(folder),
                "seconds": round(time.monotonic() - start, 3),
                "figures": figures,
            }
            write_json(folder / CARD, card, sealed=True)

    def _card_path(self, name: str) -> Path:
        return self.folder(name) / CARD


def artifacts_of(
    recipe: Recipe, prefix: str, names: tuple[str, ...], *, schema: int, data_fingerprint: str | None = None
) -> ArtifactFolder:
    """The folder that belongs to a recipe; both arms of a pair share it.

    Args:
        prefix: of the folder's name; a digest of all that decides the weights follows: model, data and seed.
        names: of the artifacts, in the order in which they are made.
        schema: of the way in which they are made.
    """
    identity = recipe.identity()
    made_from = {"schema": schema, **{key: identity[key] for key in ("model", "data", "seed")}}
    return ArtifactFolder(Path(recipe.paths.weights) / f"{prefix}-{digest(made_from)[:8]}", names, data_fingerprint)


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


def _file_digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in files}


@dataclass(frozen=True, slots=True)
class Toy:
    """A published family's own classes at toy size: its files with drawn weights, stored as their publishers do.

    Attributes:
        prefix, schema: as of `artifacts_of`.
        makers: of each artifact, what fills its folder from the recipe's model section and the data.
        check: raises RecipeError where the recipe's sizes do not fit each other.
    """

    prefix: str
    schema: int
    makers: Mapping[str, Callable[[Any, DataSet, Path], None]]
    check: Callable[[Recipe], None]

    def folder(self, recipe: Recipe, data_fingerprint: str | None = None) -> ArtifactFolder:
        """Where a recipe's toy model is."""
        return artifacts_of(
            recipe, self.prefix, tuple(self.makers), schema=self.schema, data_fingerprint=data_fingerprint
        )

    def make(self, recipe: Recipe, data: DataSet, progress: Progress) -> None:
        """Make the artifacts that are not there yet, each under a seed of its own. Errors as `check`."""
        import torch

        self.check(recipe)
        artifacts = self.folder(recipe, data.fingerprint)
        with progress.task(f"make parts {recipe.name}", len(self.makers)) as advance:
            for done, (name, maker) in enumerate(self.makers.items(), start=1):

                def work(folder: Path, maker: Any = maker, draw: int = done) -> dict[str, Any]:
                    with torch.random.fork_rng(devices=[]):
                        torch.manual_seed(recipe.seed * len(self.makers) + draw)
                        maker(recipe.model, data, folder)
                    return {}

                artifacts.make(name, work)
                advance(done)
