"""A run whose data and starting weights are there: what every stage works on, on each of its processes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from transformers.utils.logging import disable_progress_bar

from harness.models import adapter_for, device
from harness.plan import Planner
from harness.records.run_folder import run_dir_of
from harness.records.tracking import MirrorChild
from harness.training.stores.target_index import TargetIndex, index_targets

if TYPE_CHECKING:
    from harness.common.progress import Progress
    from harness.config.recipe import Recipe
    from harness.data.sources import DataSet
    from harness.models.adapter import Adapter
    from harness.plan import Plan
    from harness.training.launching.nodes import Coordinator


@dataclass(frozen=True, slots=True)
class Prepared:
    """A run whose data and starting weights are there.

    Attributes:
        others: the other nodes that work on it; None where this is the only one, and on all but node 0.
        mirrors: sends it to MLflow while it goes on; whoever made it closes it.
        nodes: how many there are.
    """

    recipe: Recipe
    plan: Plan
    data: DataSet
    adapter: Adapter
    run_dir: Path
    progress: Progress
    others: Coordinator | None = None
    mirrors: MirrorChild = field(default_factory=MirrorChild)

    @property
    def nodes(self) -> int:
        return 1 if self.others is None else self.others.nodes

    @property
    def index(self) -> TargetIndex:
        """The targets of the data set, read from `paths.stores` or counted and kept there."""
        folder = Path(self.recipe.paths.stores)
        candidates = self.recipe.gate.candidates if self.recipe.gate else "targets"
        teacher = self.recipe.gate is not None and self.recipe.gate.needs_reference
        return index_targets(
            self.data, self.adapter.processor(), candidates, folder, self.progress, keep_rows=teacher
        )


def join(recipe: Recipe, progress: Progress) -> Prepared:
    """The same run on another process, which writes nothing: everything is there."""
    use_settings(recipe)
    planner = Planner()
    data = planner.open_data(recipe)
    return Prepared(recipe, planner.plan(recipe), data, adapter_for(recipe, data), run_dir_of(recipe), progress)


def use_settings(recipe: Recipe) -> None:
    """What is the same for every process of a run."""
    device.use_threads(recipe.devices.threads)
    disable_progress_bar()  # transformers' own, for every file it reads or writes; `Progress` reports the work
