"""A run whose data and starting weights are there: what every stage works on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.training.target_index import TargetIndex, index_targets

if TYPE_CHECKING:
    from harness.common.progress import Progress
    from harness.config.recipe import Recipe
    from harness.data.sources import DataSet
    from harness.models.adapter import Adapter
    from harness.plan import Plan


@dataclass(frozen=True, slots=True)
class Prepared:
    """A run whose data and starting weights are there."""

    recipe: Recipe
    plan: Plan
    data: DataSet
    adapter: Adapter
    run_dir: Path
    progress: Progress

    @property
    def index(self) -> TargetIndex:
        folder = Path(self.recipe.paths.stores)
        candidates = self.recipe.gate.candidates if self.recipe.gate else "targets"
        return index_targets(self.data, self.adapter.processor(), candidates, folder, self.progress)
