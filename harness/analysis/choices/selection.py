"""selection.json: what a finished run's gate chose, as `harness figures` computes it from the run's stores.

The file lies in the run's folder and is small; tables, Figure 3 and reports are pure functions of it, so they can be
made where the stores no longer are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from harness.analysis.choices.kept_files import read_kept, write_kept
from harness.analysis.curves import suites

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from harness.analysis.runs import Run

SCHEMA: Final = 1
FILE: Final = "selection.json"
SHOWN: Final = 40
"""Words in the Markdown table; CSV and JSON hold all."""
Selection = dict[str, Any]


def read_selection(run_dir: Path) -> Selection | None:
    """What a run's gate chose; None if it was not made.

    Raises:
        DataError, StaleError: as `read_kept`.
    """
    return read_kept(run_dir / FILE, "the choices of a run", SCHEMA)


def write_selection(run_dir: Path, selection: Selection) -> Path:
    return write_kept(run_dir / FILE, selection)


def runs_to_replay(runs: Sequence[Run]) -> list[Run]:
    """The gated runs whose choices are shown word by word: every one outside of suites, and of each suite one, the
    first seed of its first arm that selects as ReGATE does."""
    shown = [run for run in runs if run.gate is not None and not run.record.get("suite")]
    for arms in suites(runs).values():
        firsts = (members[0] for members in arms.values())
        shown += [run for run in firsts if run.gate is not None and run.gate["selection"] == "regate"][:1]
    return shown


__all__ = ["FILE", "SCHEMA", "SHOWN", "Selection", "read_selection", "runs_to_replay", "write_selection"]
