"""The store of reference losses (Eq. 1): one flat float16 array, written once, read at random.

A folder: manifest.json, ids.npy, offsets.npy, checksums.npy, done.npy, sums.npy, losses.npy. Every file is made at
its full size before the first loss is written, so several processes can write disjoint samples in place; data are
flushed before the sample is marked done, so a killed process leaves no hole that looks like a value. A sample whose
losses are not those of its crc32 in sums.npy is not done: whoever goes on with a pass scores it again.

Legend: M samples of the store, B rows, S expanded length.
"""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from regate.candidates import Candidates, candidates_of, in_order, target_checksum
from regate.errors import ConfigError, MismatchError, NonFiniteLossError, StoreError
from regate.files import make_array, make_folder, open_array, read_json, write_json
from regate.index import StoreIndex

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from regate import config
    from regate.types import Layout

KIND = "reference store"
_KEYS = {
    **dict.fromkeys(("samples", "targets", "index_crc32", "checksums_crc32"), int),
    "state": str,
    "fingerprint": dict,
}
CHUNK = 1024
"""Samples of a chunk: processes share the work by whole chunks."""


@dataclass(frozen=True, slots=True)
class ReferenceWriter:
    """A reference store being written."""

    path: Path
    index: StoreIndex
    losses: NDArray[Any]
    done_M: NDArray[Any]
    sums_M: NDArray[Any]

    @classmethod
    def create(
        cls,
        path: Path | str,
        *,
        sample_ids: Sequence[int] | NDArray[Any],
        num_targets: Sequence[int] | NDArray[Any],
        checksums: Sequence[int] | NDArray[Any],
        fingerprint: Mapping[str, Any],
    ) -> ReferenceWriter:
        """Make the folder, or go on with one that was made from the same things.

        Args:
            sample_ids, num_targets, checksums: one entry a sample, as `regate.candidates.store_keys` gives them.
            fingerprint: JSON-able; all that the losses depend on: teacher, tokenizer, template, data, settings.

        Raises:
            StoreError: the folder was made from something else. Nothing is overwritten.
        """
        path = Path(path)
        index, order_M = StoreIndex.from_counts(sample_ids, num_targets)
        checksums_M = np.asarray(checksums, dtype=np.uint32)[order_M]
        manifest = {
            "schema": 1,
            "kind": KIND,
            "state": "writing",
            "samples": len(index),
            "targets": index.size,
            "index_crc32": index.crc,
            "checksums_crc32": zlib.crc32(checksums_M.tobytes()),
            "fingerprint": dict(fingerprint),
        }

        def fill(folder: Path) -> None:
            index.save(folder)
            np.save(folder / "checksums.npy", checksums_M)
            make_array(folder / "done.npy", len(index), "uint8", 0)
            make_array(folder / "sums.npy", len(index), "uint32", 0)
            make_array(folder / "losses.npy", index.size, "float16", np.nan)
            write_json(folder / "manifest.json", manifest)

        if not make_folder(path, fill):
            stored = read_json(path / "manifest.json", KIND, keys=_KEYS)
            _same_fingerprint(path, stored, fingerprint)
            for name in ("samples", "targets", "index_crc32", "checksums_crc32"):
                if stored[name] != manifest[name]:
                    raise StoreError(
                        f"{path} was made from other samples or targets ({name} {stored[name]}, here "
                        f"{manifest[name]}); choose another folder"
                    )
            if stored["state"] == "complete" and not (path / "sums.npy").exists():
                return _complete_without_sums(path, manifest)
        return cls._open(path, manifest)

    @classmethod
    def _open(cls, path: Path, manifest: dict[str, Any]) -> ReferenceWriter:
        index = StoreIndex.load(path, manifest)
        if not (path / "sums.npy").exists():
            raise StoreError(f"{path} lacks sums.npy or is of an earlier version; delete it and score again")
        writer = cls(
            path,
            index,
            open_array(path / "losses.npy", (index.size,), "float16", writable=True),
            open_array(path / "done.npy", (len(index),), "uint8", writable=True),
            open_array(path / "sums.npy", (len(index),), "uint32", writable=True),
        )
        writer._forget_damaged()
        return writer

    def _forget_damaged(self) -> None:
        """Mark samples as missing whose losses are not what was written."""
        offsets, marked_M = self.index.offsets_M1, np.asarray(self.done_M) != 0
        for row in marked_M.nonzero()[0].tolist():
            losses = np.asarray(self.losses[offsets[row] : offsets[row + 1]])
            if self.done_M[row] != 1 or zlib.crc32(losses.tobytes()) != self.sums_M[row]:
                self.done_M[row] = 0

    def done_ids(self) -> set[int]:
        """Ids of the samples that have their losses."""
        return set(self.index.ids_M[np.asarray(self.done_M) == 1].tolist())

    def share(self, rank: int, world: int) -> list[int]:
        """Ids that process `rank` of `world` should score: whole chunks in turn, done or not, so that a resumed
        process meets the same batches (`score_reference` skips what is done)."""
        place_M = np.arange(len(self.index))
        ids: list[int] = self.index.ids_M[place_M // CHUNK % world == rank].tolist()
        return ids

    def write(self, sample_ids: Sequence[int], losses: Sequence[Tensor]) -> None:
        """Store the losses of whole samples, each in canonical order, and mark them done.

        Raises:
            StoreError: an unknown sample, or another number of losses than its targets.
            NonFiniteLossError: a loss is NaN or infinite.
        """
        rows = self.index.rows(np.asarray(sample_ids, dtype=np.int64), self.path)
        for sample_id, row, values in zip(sample_ids, rows.tolist(), losses, strict=True):
            start, stop = int(self.index.offsets_M1[row]), int(self.index.offsets_M1[row + 1])
            if values.numel() != stop - start:
                raise StoreError(
                    f"sample {sample_id}: {values.numel()} losses for {stop - start} targets of {self.path}"
                )
            if not bool(torch.isfinite(values).all()):
                raise NonFiniteLossError(
                    f"sample {sample_id}: the reference loss of target {int((~torch.isfinite(values)).nonzero()[0])} "
                    "is not finite; score with dtype float32, and check the teacher's weights"
                )
            half = to_half(values.numpy())
            self.losses[start:stop] = half
            self.sums_M[row] = zlib.crc32(half.tobytes())
        _flush(self.losses)
        _flush(self.sums_M)
        self.done_M[rows] = 1
        _flush(self.done_M)

    def finish(self) -> ReferenceStore:
        """Seal the store; every process may call it.

        Raises:
            StoreError: samples are still missing.
        """
        missing = int((np.asarray(self.done_M) == 0).sum())
        if missing:
            raise StoreError(
                f"{self.path}: {missing} of {len(self.index)} samples have no reference loss yet; score again, "
                "samples that are done are skipped"
            )
        manifest = read_json(self.path / "manifest.json", KIND, keys=_KEYS)
        if manifest["state"] != "complete":
            manifest |= {
                "state": "complete",
                "losses_crc32": zlib.crc32(np.ascontiguousarray(self.losses).data),
            }
            write_json(self.path / "manifest.json", manifest)
        return ReferenceStore.open(self.path)


@dataclass(frozen=True, slots=True)
class ReferenceStore:
    """A complete reference store, memory-mapped."""

    path: Path
    index: StoreIndex
    checksums_M: NDArray[Any]
    values: NDArray[Any]
    manifest: dict[str, Any]

    @classmethod
    def open(cls, path: Path | str, expect_fingerprint: Mapping[str, Any] | None = None) -> ReferenceStore:
        """Open a store and check that it is whole.

        Raises:
            StoreError: it is incomplete, truncated or damaged, or was made from something else than
                `expect_fingerprint` says.
        """
        path = Path(path)
        manifest = read_json(path / "manifest.json", KIND, keys=_KEYS)
        if expect_fingerprint is not None:
            _same_fingerprint(path, manifest, expect_fingerprint)
        samples, targets = int(manifest["samples"]), int(manifest["targets"])
        values = open_array(path / "losses.npy", (targets,), "float16")
        checksums_M = open_array(path / "checksums.npy", (samples,), "uint32")
        if manifest["state"] != "complete":
            done = int(open_array(path / "done.npy", (samples,), "uint8").sum())
            raise StoreError(f"{path} is incomplete: {done} of {samples} samples are scored; score again, it resumes")
        if (
            zlib.crc32(values.data) != manifest.get("losses_crc32")
            or zlib.crc32(checksums_M.data) != manifest["checksums_crc32"]
        ):
            raise StoreError(f"{path}: the losses are damaged (checksum differs); delete the folder and score again")
        return cls(path, StoreIndex.load(path, manifest), checksums_M, values, manifest)

    @property
    def num_targets_total(self) -> int:
        return self.index.size

    def losses(self, sample_ids_B: Tensor, layout: Layout, candidates: config.Candidates = "targets") -> Tensor:
        """l_ref at the candidates of a batch: float32 BS, nats, NaN elsewhere.

        Raises:
            StoreError: a sample is unknown.
            MismatchError: a sample's candidates are not those that were scored.
        """
        return self.losses_at(candidates_of(layout, candidates), sample_ids_B)

    def losses_at(self, candidates: Candidates, sample_ids_B: Tensor) -> Tensor:
        """`losses`, for candidates that are at hand already."""
        slots = self.index.slots(candidates, sample_ids_B, self.path)
        for row, ids in zip(slots.rows_B.tolist(), in_order(candidates, candidates.tokens_BS), strict=True):
            if row >= 0 and target_checksum(ids) != int(self.checksums_M[row]):
                raise MismatchError(
                    f"sample {int(self.index.ids_M[row])}: checksum of its target ids is {target_checksum(ids):08x} "
                    f"here and {int(self.checksums_M[row]):08x} in {self.path}: the template, the tokenizer or the "
                    "data changed since; score again"
                )
        return slots.spread(self.values[slots.slot_n])

    def to_parquet(self, path: Path | str) -> None:
        """Export: sample_id int64, checksum uint32, losses list<float16>. Needs pyarrow."""
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ModuleNotFoundError:
            raise ConfigError("to_parquet needs pyarrow, which is not installed: pip install pyarrow") from None

        lists = pa.LargeListArray.from_arrays(pa.array(self.index.offsets_M1), pa.array(np.asarray(self.values)))
        table = pa.table(
            {
                "sample_id": pa.array(self.index.ids_M),
                "checksum": pa.array(np.asarray(self.checksums_M)),
                "losses": lists,
            }
        )
        path = Path(path)
        aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        pq.write_table(table, aside)
        aside.replace(path)


def _complete_without_sums(path: Path, manifest: dict[str, Any]) -> ReferenceWriter:
    """The writer of a store that an earlier version finished: nothing is left to write, and `ReferenceStore.open`
    holds its losses to the manifest."""
    index = StoreIndex.load(path, manifest)
    losses = open_array(path / "losses.npy", (index.size,), "float16")
    done_M = open_array(path / "done.npy", (len(index),), "uint8")
    return ReferenceWriter(path, index, losses, done_M, np.zeros(len(index), dtype=np.uint32))


def to_half(values: NDArray[Any]) -> NDArray[Any]:
    """float16, large values held at its greatest finite one."""
    return np.minimum(values.astype(np.float32), 65504.0).astype(np.float16)


def _same_fingerprint(path: Path, manifest: dict[str, Any], expected: Mapping[str, Any]) -> None:
    stored = manifest["fingerprint"]
    differing = [
        f"{key} (store {stored.get(key)!r}, here {expected.get(key)!r})"
        for key in sorted(stored.keys() | expected.keys())
        if stored.get(key) != expected.get(key)
    ]
    if differing:
        raise StoreError(f"{path} was made from something else: {'; '.join(differing)}; choose another folder")


def _flush(array: NDArray[Any]) -> None:
    assert isinstance(array, np.memmap)
    array.flush()
