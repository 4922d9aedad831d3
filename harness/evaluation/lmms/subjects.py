"""What a child evaluates: checkpoints of this project, or a model of lmms-eval's own."""

from __future__ import annotations

import importlib.metadata
from typing import TYPE_CHECKING, Any

from lmms_eval.models import get_model, list_available_models

from harness.common.errors import EnvironmentProblem, RecipeError
from harness.config.explain import nearest
from harness.data.loading.video import read_frames
from harness.evaluation.lmms.kept_features import KeptFeatures
from harness.evaluation.lmms.model import BuiltinModel, model_class
from harness.evaluation.lmms.scorer import Checkpoint, FrameCache
from harness.models.adapter import KeepsTower

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import torch
    from lmms_eval.api.model import lmms
    from torch import Tensor

    from harness.benchmarks import AnyBenchmark
    from harness.config.evaluation import LmmsEvalModel
    from harness.data.sample import Media
    from harness.evaluation.lmms.answer_cache import AnswerCollector
    from harness.models.adapter import Evaluated


class Checkpoints:
    """The checkpoints of a child, one after the other; they share the decoded media, and what a frozen tower said of
    them where every batch would give the same bits.

    Args:
        count: frames of a clip.
        readers: threads that decode media.
        weights: type that kept models are held in; None for published ones, which are loaded in the type that they
            compute in.
        keep_frames: gives what reads media by way of the disk, from what decodes them; None where nothing is kept.
    """

    def __init__(
        self,
        adapter: Evaluated,
        count: int,
        batch_size: int,
        device: torch.device,
        dtype: torch.dtype | None,
        readers: int = 1,
        weights: torch.dtype | None = None,
        keep_frames: Callable[[Callable[[Media], Tensor], Evaluated], Callable[[Media], Tensor] | None] | None = None,
    ) -> None:
        self._adapter = adapter
        self._settings = {
            "count": count,
            "batch_size": batch_size,
            "device": device,
            "dtype": dtype,
            "readers": readers,
            "features": _kept_features(adapter, device, dtype),
            "weights": weights,
        }
        rule = adapter.frame_rule

        def read(media: Media) -> Tensor:
            return read_frames(media, frames=count, rule=rule)

        kept = None if keep_frames is None else keep_frames(read, adapter)
        self._frames = FrameCache(kept or read)
        self._open: Checkpoint | None = None

    def made_by(self) -> dict[str, Any]:
        """What decides an answer beside the checkpoint's weights and the request."""
        return {
            "adapter": self._adapter.name,
            "processor": self._adapter.processor().fingerprint,
            "frames": self._settings["count"],
            "frame_rule": self._adapter.frame_rule,
            "dtype": str(self._settings["dtype"]),
            # Earlier versions held all in float32, and said nothing of it.
            **{key: name for key, name in self.facts().items() if name != "float32"},
        }

    def facts(self) -> dict[str, Any]:
        """What a result says of how the model was held: the type of kept weights."""
        weights = self._settings["weights"]
        return {} if weights is None else {"weights": str(weights).removeprefix("torch.")}

    def model(self, directory: Path, collector: AnswerCollector, benchmark: AnyBenchmark) -> lmms:
        """lmms-eval's view of a checkpoint. The weights of the last one are freed before the next ones are loaded."""
        if self._open is None or self._open.directory != directory:
            self._open = None
            self._open = Checkpoint(self._adapter, directory, self._frames, **self._settings)  # type: ignore[arg-type]
        return model_class()(collector, self._open, benchmark)


def _kept_features(adapter: Evaluated, device: torch.device, dtype: torch.dtype | None) -> KeptFeatures | None:
    same_bits = device.type == "cpu" and dtype is None
    return KeptFeatures(adapter) if same_bits and isinstance(adapter, KeepsTower) else None


class Builtin:
    """A model that comes with lmms-eval.

    Raises:
        RecipeError: there is none of that name.
        EnvironmentProblem: a package that it needs is not installed.
    """

    def __init__(self, model: LmmsEvalModel, batch_size: int) -> None:
        self._model = model
        self._batch_size = batch_size
        self._loaded: Any = None
        known = list_available_models(include_aliases=True)
        if model.name not in known:
            raise RecipeError(f"model.name: lmms-eval has no model {model.name!r}{nearest(model.name, known)}")
        try:
            self._class: Any = get_model(model.name)
        except ImportError as error:
            raise EnvironmentProblem(
                f"lmms-eval's model {model.name} cannot be imported: {error}", hint="install what it needs"
            ) from error

    def made_by(self) -> dict[str, Any]:
        """What decides an answer beside the checkpoint's weights and the request."""
        settings = {key: getattr(self._model, key) for key in ("name", "args")}
        return {**settings, "lmms_eval": importlib.metadata.version("lmms_eval")}

    def facts(self) -> dict[str, Any]:
        """How its weights are held is its own affair."""
        return {}

    def model(self, directory: Path, collector: AnswerCollector, benchmark: AnyBenchmark) -> lmms:
        """The model behind our own, which keeps its answers."""

        def load() -> Any:
            if self._loaded is None:
                weights = {} if self._model.checkpoint is None else {self._model.argument: str(directory)}
                try:
                    self._loaded = self._class(**weights, **{"batch_size": self._batch_size, **self._model.args})
                except TypeError as error:
                    raise RecipeError(f"model.args: lmms-eval's model {self._model.name}: {error}") from error
            return self._loaded

        return BuiltinModel(collector, load, is_simple=self._class.is_simple, batch_size=self._batch_size)
