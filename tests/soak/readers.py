"""Who reads each file that a run leaves: a file without an entry is one whose damage nobody looked at."""

from __future__ import annotations

import json
import sys
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

_RUN: Final = "results/runs/*"
OWN: Final = (
    "data/.checked/*.json",
    "data/.packed/*.bin",
    "data/shapes-*/*.json",
    f"{_RUN}/checkpoints/resume-*/COMPLETE",
    f"{_RUN}/checkpoints/resume-*/gate.pt",
    f"{_RUN}/checkpoints/resume-*/state.json",
    f"{_RUN}/checkpoints/resume-*/trained/*",
    f"{_RUN}/checkpoints/step-*",
    f"{_RUN}/difficulty/*.npy",
    f"{_RUN}/difficulty/journal.*",
    f"{_RUN}/difficulty/manifest.json",
    f"{_RUN}/eval/*.questions.json.gz",
    f"{_RUN}/eval/step-*/*.items.jsonl.gz",
    f"{_RUN}/eval/step-*/*.json",
    f"{_RUN}/inputs.json",
    f"{_RUN}/ledger.jsonl",
    f"{_RUN}/provenance.json",
    f"{_RUN}/record.json",
    "stores/reference-*/*",
    "stores/targets-*.npz",
    "stores/tokens-*.bin",
    "stores/tower-*/*",
    "weights/*",
)
"""Read by the run itself, at one of its moments: the tests see them opened."""
ELSEWHERE: Final = {
    "data/shapes-*.mp4": "libav, which opens files itself; the loading processes and the evaluation's process",
    "results/mlflow.db": "MLflow and the mirror to it: harness.records.tracking",
    f"{_RUN}/eval/step-*/*.answers-*.jsonl": "the evaluation's process",
    f"{_RUN}/ledger-beside.*": "the run, at its start, where an evaluation went on beside the training",
    f"{_RUN}/mirror.json": "the mirror to MLflow: harness.records.tracking",
    f"{_RUN}/workers/*[!t]": "the run and its processes: harness.training.launching.agent",
    f"{_RUN}/attention.json": "`harness figures` and the reports of runs",
    f"{_RUN}/needed_words.json": "`harness figures` and the reports of a pair",
    f"{_RUN}/own/*": "`harness figures`, where a rule of the user's own is replayed; its hash stands in the recipe",
    f"{_RUN}/selection.json": "`harness figures` and the reports of runs",
    "stores/lengths-*.npz": "the next run on the same data: harness.training.stores.sample_lengths",
    "stores/frames/*.bin": "the evaluation's process, where `devices.frame_cache_gb` keeps any",
    f"{_RUN}/recipe.json": "`harness sync`, `status` and `trace`: harness.records.run_folder.read_recipe",
}
UNREAD: Final = {
    "data/*.lock": "it is locked and empty",
    f"{_RUN}/.*lock": "it is locked and empty",
    f"{_RUN}/eval/.work-*": "of an evaluation that was killed: the next one removes it whole",
    f"{_RUN}/eval/lmms_eval.log": "what a library printed; its end is shown to people where the evaluation fails",
    f"{_RUN}/mirror.lock": "it is locked and empty",
    "results/mlflow.db.lock": "it is locked and empty",
    "results/mlartifacts/*": "MLflow's copies of files that are here, for its pages",
    f"{_RUN}/workers/*.txt": "what processes printed, for people",
    "results/figures/*": "made from the records each time, for people",
    "results/reports/*": "made from the records each time, for people",
    "results/selection/*": "made from selection.json each time, for people",
    "results/tables/*": "made from the records each time, for people",
}
"""Read by nobody, with the reason: whatever happens to them, the run is the same."""


def without_reader(files: Iterable[str]) -> list[str]:
    """Files, by their path from the folder of all, that are in no table or in several."""
    tables = (OWN, ELSEWHERE, UNREAD)
    return [file for file in files if sum(any(fnmatchcase(file, kind) for kind in table) for table in tables) != 1]


def is_unread(file: str) -> bool:
    return any(fnmatchcase(file, kind) for kind in UNREAD)


class Opened:
    """Files below a folder that this process opened to read. Python tells of what it opens itself: not of what a
    library opens, nor another process."""

    def __init__(self, folder: Path) -> None:
        self._begin = f"{folder}/"
        self._paths: set[str] | None = set()
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        # os.open has no mode: by it a folder's or a file's bytes are forced to the disk.
        if event != "open" or self._paths is None or arguments[1] is None or not isinstance(arguments[0], str | Path):
            return
        path = str(arguments[0])
        if path.startswith(self._begin) and not set(arguments[1]) & set("wax"):
            self._paths.add(path.removeprefix(self._begin))

    def close(self) -> set[str]:
        """Hear no more: a hook cannot be taken away."""
        paths, self._paths = self._paths or set(), None
        return paths

    def keep(self, file: Path) -> None:
        """For the process that comes after this one."""
        file.write_text(json.dumps(sorted(self.close())))
