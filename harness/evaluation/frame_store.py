"""Frames of videos as a model's processor reads them, kept on the disk: they are decoded once for all checkpoints,
and for all runs that are asked about the same videos.

A file holds the frames of one clip: uint8 [T, 3, Z, Z], squares of the tower's size, behind their digest. Its name is
made of all that decides them: path, size, time of change and, where it is known, sha256 of the video, the part of it,
number and rule of the frames, the processor's settings, and the versions of what decodes and resizes. So nothing that
changed is found, and what is not as it was written is said and made again. Where the room is used up, clips are
decoded each time, as without it.

Legend: T frames, H and W pixels of a video, Z pixels of a square's side.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from harness.common.errors import DataError
from harness.common.files import check_kind, is_folder, write_atomic
from harness.common.hashing import digest
from harness.data.processor import ReadsSquares

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from harness.data.loading.frames import FrameRule
    from harness.data.sample import Media

SCHEMA: Final = 1
"""Raised, too, where this project decodes or resizes otherwise."""
_MAGIC: Final = b"ReGATE frames 1\n"
_DIGEST_BYTES: Final = 32
_MADE_WITH: Final = ("av", "numpy", "pillow", "torch")


@dataclass
class FrameStore:
    """Reads a video's frames as its processor reads them, once for all who ask.

    Args:
        read: decodes media: uint8 T3HW, in the file's own size.
        squares: `ReadsSquares.squares` of the processor.
        made_by: what decides the frames beside the video, as plain values.
        folder: where the clips of all models lie.
        room: bytes that this process may add.
        say: is told of what is damaged.

    Attributes:
        read_back, decoded: clips that came from the disk, and from their videos.
    """

    read: Callable[[Media], Tensor]
    squares: Callable[[Tensor], Tensor]
    made_by: dict[str, Any]
    folder: Path
    room: int
    say: Callable[[str], None]
    read_back: int = 0
    decoded: int = 0
    _lock: Lock = field(default_factory=Lock)

    def __call__(self, media: Media) -> Tensor:
        """The frames of a video as squares; those of a picture, or of a folder of pictures, as they are.

        Raises:
            DataError: the media cannot be read, or something else than a file stands where its frames lie; it is
                named.
        """
        if media.kind != "video" or not media.path.is_file():
            return self.read(media)
        path = self._path(media)
        kept = self._kept(path)
        if kept is not None:
            with self._lock:
                self.read_back += 1
            return kept
        frames_T3ZZ = self.squares(self.read(media))
        content = _packed(frames_T3ZZ)
        with self._lock:
            self.decoded += 1
            fits = len(content) <= self.room
            self.room -= len(content) if fits else 0
        if fits:
            write_atomic(path, content)
        return frames_T3ZZ

    def _path(self, media: Media) -> Path:
        status = media.path.stat()
        file = [str(media.path.resolve()), status.st_size, status.st_mtime_ns, media.sha256]
        key = digest({"schema": SCHEMA, "file": file, "part": [media.start, media.end], **self.made_by})
        return self.folder / key[:2] / f"{key[2:34]}.bin"

    def _kept(self, path: Path) -> Tensor | None:
        """None where they are not kept, or not as they were written."""
        check_kind(path)
        if is_folder(path):
            raise DataError(f"{path}: a folder, not a file", hint="take it away, and give the command again")
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        start = len(_MAGIC) + _DIGEST_BYTES
        if content[:start] != _MAGIC + _digest(content[start:]):
            self.say(f"WARNING: {path}: is not as it was written (checksum); its frames are decoded again")
            path.unlink(missing_ok=True)
            with self._lock:
                self.room += len(content)
            return None
        return torch.from_numpy(np.load(io.BytesIO(content[start:]), allow_pickle=False))


def open_frames(
    read: Callable[[Media], Tensor],
    processor: Any,
    *,
    count: int,
    rule: FrameRule,
    folder: Path,
    room: int,
    say: Callable[[str], None],
) -> FrameStore | None:
    """The store of a model's frames; None where its processor reads frames otherwise.

    Args:
        processor: of the model, see `harness.data.processor.ReadsSquares`.
        count: frames of a clip.
        folder: `paths.frames` of a recipe.
        room: bytes that this process may add, of `harness.records.run_folder.frames_room`.
    """
    settings = processor.square_settings() if isinstance(processor, ReadsSquares) else None
    if settings is None:
        return None
    versions = {name: importlib.metadata.version(name) for name in _MADE_WITH}
    made_by = {"squares": settings, "frames": count, "rule": rule, "made_with": versions}
    return FrameStore(read, processor.squares, made_by, folder, room, say)


def _packed(frames_T3ZZ: Tensor) -> bytes:
    array = io.BytesIO()
    np.save(array, frames_T3ZZ.numpy(), allow_pickle=False)
    return _MAGIC + _digest(array.getvalue()) + array.getvalue()


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).digest()


__all__ = ["FrameStore", "open_frames"]
