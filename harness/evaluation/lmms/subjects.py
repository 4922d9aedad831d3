"""What a child evaluates, loaded when the first answer is missing and not before."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lmms_eval.models import get_model, list_available_models

from harness.common.errors import EnvironmentProblem, RecipeError
from harness.config.explain import nearest
from harness.data.loading.video import read_frames
from harness.evaluation.lmms.model import BuiltinModel, model_class
from harness.evaluation.lmms.scorer import FrameCache, Scorer

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from lmms_eval.api.model import lmms

    from harness.config.evaluation import LmmsEvalModel
    from harness.evaluation.lmms.model import Desk
    from harness.evaluation.lmms.scorer import Evaluated


@dataclass
class Checkpoint:
    """A checkpoint of this project.

    Attributes:
        directory: that `Adapter.load` reads.
        frames: decodes media.
        count: frames of a clip, chosen by the adapter's `frame_rule`.
        rows: most sequences of a forward pass.
        dtype: autocast type, None for none.
    """

    adapter: Evaluated
    directory: Path
    frames: FrameCache
    count: int
    rows: int
    device: torch.device
    dtype: torch.dtype | None
    _scorer: Scorer | None = field(default=None, repr=False)

    def scorer(self) -> Scorer:
        """The model and its processor, on their device."""
        if self._scorer is None:
            model = self.adapter.load(self.directory).to(self.device)
            self._scorer = Scorer(self.adapter, model, self.frames, rows=self.rows, dtype=self.dtype)
        return self._scorer


class Checkpoints:
    """The checkpoints of a child, one after the other; they share the decoded media.

    Args:
        count: frames of a clip.
    """

    def __init__(
        self, adapter: Evaluated, count: int, rows: int, device: torch.device, dtype: torch.dtype | None
    ) -> None:
        self._adapter = adapter
        self._settings = {"count": count, "rows": rows, "device": device, "dtype": dtype}
        rule = adapter.frame_rule
        self._frames = FrameCache(lambda media: read_frames(media, frames=count, rule=rule))
        self._open: Checkpoint | None = None

    def made_by(self) -> dict[str, Any]:
        """What decides an answer beside the checkpoint's weights and the request."""
        return {
            "adapter": self._adapter.name,
            "processor": self._adapter.processor().fingerprint,
            "frames": self._settings["count"],
            "frame_rule": self._adapter.frame_rule,
            "dtype": str(self._settings["dtype"]),
        }

    def model(self, directory: Path, desk: Desk, *, own: bool) -> lmms:
        """lmms-eval's view of a checkpoint. The last one goes before the next one comes."""
        if self._open is None or self._open.directory != directory:
            self._open = None
            self._open = Checkpoint(self._adapter, directory, self._frames, **self._settings)  # type: ignore[arg-type]
        return model_class()(desk, self._open, own=own)


class Builtin:
    """A model that comes with lmms-eval.

    Raises:
        RecipeError: there is none of that name.
        EnvironmentProblem: a package that it needs is not installed.
    """

    def __init__(self, model: LmmsEvalModel, rows: int) -> None:
        self._model = model
        self._rows = rows
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
        told = {key: getattr(self._model, key) for key in ("name", "args")}
        return {**told, "lmms_eval": importlib.metadata.version("lmms_eval")}

    def model(self, directory: Path, desk: Desk, *, own: bool) -> lmms:
        """The model behind our own, which keeps its answers."""

        def load() -> Any:
            if self._loaded is None:
                weights = {} if self._model.checkpoint is None else {self._model.argument: str(directory)}
                try:
                    self._loaded = self._class(**weights, **{"batch_size": self._rows, **self._model.args})
                except TypeError as error:
                    raise RecipeError(f"model.args: lmms-eval's model {self._model.name}: {error}") from error
            return self._loaded

        return BuiltinModel(desk, load, is_simple=self._class.is_simple, rows=self._rows)
