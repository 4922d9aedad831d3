"""The evaluation of a model as it is, without a training: a document of its own kind beside the recipe.

`official weights in, official numbers out`: a published checkpoint through this project's own code, or one of the
models that come with lmms-eval, on the paper's benchmarks. Its record says `status: evaluated` and has no totals.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, PositiveInt

from harness.benchmarks import BENCHMARKS, PaperBenchmark
from harness.benchmarks.question_file import QuestionFile  # noqa: TC001 - pydantic reads it
from harness.common.hashing import digest
from harness.config.data import Frames  # noqa: TC001 - pydantic reads it
from harness.config.explain import Problem, nearest
from harness.config.model import Checkpoint, ModelSection
from harness.config.recipe import Devices, EvaluateRecipe, Paths
from harness.config.section import Strict

if TYPE_CHECKING:
    from collections.abc import Iterator, Set
    from pathlib import Path as FilePath

    from harness.config.yaml_positions import Document, Path


class LmmsEvalModel(ModelSection):
    """A model that comes with lmms-eval, by the name it has there."""

    adapter: Literal["lmms_eval"]
    name: str
    checkpoint: str | None = None
    """Its weights, relative to paths.weights; None for a model without."""
    argument: str = "pretrained"
    """The name of the model's argument that takes them."""
    args: dict[str, str | int | float | bool | None] = Field(default_factory=dict)
    """Its other arguments."""

    def missing(self, root: FilePath) -> list[str]:
        """A folder that is named and not there."""
        if self.checkpoint is None or (root / self.checkpoint).is_dir():
            return []
        return [f"{root / self.checkpoint}: named by model.checkpoint"]


EvaluatedModel = Annotated[Checkpoint | LmmsEvalModel, Field(discriminator="adapter")]


class EvaluationRecipe(Strict):
    """A model, and what it is asked."""

    kind: Literal["evaluation"]
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$", max_length=80)]
    description: str = ""
    model: EvaluatedModel
    frames: Frames = 16
    """Of a video; a model of lmms-eval has an argument of its own for it."""
    benchmarks: tuple[str | QuestionFile, ...] = Field(min_length=1)
    prompts: Literal["task", "paper"] = "task"
    """As `evaluate.prompts` of a recipe."""
    limit: PositiveInt | None = None
    """Items of each task; None takes all."""
    batch: PositiveInt = 8
    """Sequences of a forward pass."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    devices: Devices = Devices()
    paths: Paths = Paths()

    @property
    def evaluate(self) -> EvaluateRecipe:
        """The part that a training's recipe has too."""
        return EvaluateRecipe(
            benchmarks=self.benchmarks, batch=self.batch, limit=self.limit, prompts=self.prompts, at=(1.0,)
        )

    def identity(self) -> dict[str, Any]:
        """What makes two evaluations the same, in the sections that a training's recipe has, so that whoever reads
        records reads both: nothing is trained, so there is no gate, and no seed but the first."""
        return {
            "kind": self.kind,
            "name": self.name,
            "seed": 0,
            "model": self.model.model_dump(mode="json"),
            "data": {"frames": self.frames},
            "train": {"precision": self.precision},
            "gate": None,
            "evaluate": self.evaluate.identity(),
        }

    @property
    def run_id(self) -> str:
        """`name-` and eight hex digits of the identity."""
        return f"{self.name}-{digest(self.identity())[:8]}"


def evaluation_rules(document: Document, wrong: Set[Path]) -> Iterator[Problem]:
    """Benchmarks that are not known, ask about a training's own data, or are given twice.

    Args:
        wrong: unused; every rule reads values of the right type only.
    """
    names = document.data.get("benchmarks")
    model = document.data.get("model")
    in_words = isinstance(model, dict) and model.get("adapter") == "lmms_eval"
    for index, name in enumerate(names if isinstance(names, list) else ()):
        if isinstance(name, dict) and in_words:
            refused = f"benchmark {name.get('file')}: a model of lmms-eval's own is asked published benchmarks only"
            yield Problem(document.value_at(("benchmarks", index)), ("benchmarks", index), refused)
        if not isinstance(name, str):
            continue
        message = None
        if name not in BENCHMARKS:
            message = f"unknown benchmark {name}{nearest(name, BENCHMARKS)}"
        elif not isinstance(BENCHMARKS[name], PaperBenchmark):
            message = f"benchmark {name} asks the held-out questions of a training; name it in that recipe"
        elif name in names[:index]:
            message = f"benchmark {name} is given twice"
        if message:
            yield Problem(document.value_at(("benchmarks", index)), ("benchmarks", index), message)
