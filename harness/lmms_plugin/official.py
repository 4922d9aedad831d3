"""Task files for lmms-eval's own tasks of the published benchmarks, on local data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pathlib import Path

    from harness.benchmarks import Published


def write_official_tasks(
    benchmark: Published, root: Path, folder: Path, prompts: Literal["task", "paper"], limit: int | None
) -> list[str]:
    """Write the task files of a benchmark and return the names of its tasks.

    The tasks show a document as lmms-eval's do: pictures that PIL has opened, or the path of a video. They look for
    videos below HF_HOME, where this links the folders of `root`.

    Args:
        root: the folder of all published benchmarks' data (`benchmark_data.benchmarks_root`).
        folder: gets the files; `TaskManager(include_path=folder, include_defaults=False)` finds them.
        limit: items of each part, as in `open_published`. lmms-eval's own `limit` must not be used.
    """
    raise NotImplementedError
