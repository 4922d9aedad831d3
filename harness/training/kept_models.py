"""The models that a training keeps for evaluation: each folder holds the sha256 of its files, so that a byte that
changed on the disk is told before the model is scored, and before days are trained beyond it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from harness.common.errors import DataError
from harness.common.files import read_json, write_json
from harness.common.hashing import file_digest, has_digest

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SCHEMA: Final = 1
DIGESTS: Final = "digests.json"
_WEIGHTS: Final = (".safetensors", ".bin", ".pth")


def seal_model(folder: Path) -> None:
    """Write down the sha256 of every file of a model that was just saved."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    digests = {path.relative_to(folder).as_posix(): file_digest(path) for path in files}
    write_json(folder / DIGESTS, {"schema": SCHEMA, "sha256": digests}, sealed=True)


def check_model(folder: Path) -> None:
    """Hold a kept model to its digests; one that an earlier version kept has none, and is taken as it is where its
    weights are there.

    Raises:
        DataError: a file of it is missing or has changed; it is named.
    """
    path = folder / DIGESTS
    run_dir = folder.parents[1]
    hint = f"bring the model back from a copy, or move {run_dir} away to train anew"
    if not path.exists() and any(file.suffix in _WEIGHTS for file in folder.iterdir()):
        return
    content = read_json(path, "the digests of a kept model", schema=SCHEMA, shape={"sha256": dict}, hint=hint)
    changed = [name for name, sha256 in sorted(content["sha256"].items()) if not has_digest(folder / name, sha256)]
    if changed:
        raise DataError(f"{folder}: {', '.join(changed)} is missing or has changed (sha256)", hint=hint)


def check_before_resuming(run_dir: Path, steps: Sequence[int], newest: Path | None) -> None:
    """Look at the models that a training has kept before it goes on: it cannot keep them again.

    Args:
        steps: after which a model is kept.
        newest: the checkpoint that the training goes on from, `resume-<step>`; None where it starts anew.

    Raises:
        DataError: one is gone or damaged.
    """
    if newest is None:
        return
    for step in steps:
        folder = run_dir / "checkpoints" / f"step-{step:06d}"
        if folder.is_dir():
            check_model(folder)
        elif step <= int(newest.name.removeprefix("resume-")):
            raise DataError(
                f"{folder} is gone, and the training goes on from {newest.name}: it cannot keep that model again",
                hint=f"bring it back, or move {run_dir} away to train anew",
            )


__all__ = ["DIGESTS", "check_before_resuming", "check_model", "seal_model"]
