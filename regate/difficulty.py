"""The running student losses (Eq. 2): m <- beta m + (1 - beta) l, one value for each sample and candidate.

With each sample visited once an epoch, what epoch e writes is first read in epoch e + 1. So a step only appends its
losses to a journal of its own process, and the journals are folded into the next epoch's array at the epoch's end:
the same selection as an update at every step, without a collective.

A folder (shared by all processes): manifest.json, ids.npy, offsets.npy, m.e{E}.npy (float16), and
journal.e{E}.rank{r}. Arrays of earlier epochs stay while one of the last two checkpoints may need them.

Legend: M samples of the store, B rows, S expanded length.
"""

from __future__ import annotations

import os
import shutil
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from regate import journal, process
from regate.errors import ConfigError, StoreError
from regate.files import make_array, make_folder, open_array, read_json, write_json
from regate.index import Slots, StoreIndex
from regate.reference import ReferenceStore, to_half

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from io import BufferedRandom

    from numpy.typing import NDArray
    from torch import Tensor

    from regate.candidates import Candidates
    from regate.config import EmaInit, GateConfig

KIND = "difficulty store"
_KEYS = {"samples": int, "targets": int, "index_crc32": int, "decay": int | float, "init": str}


class DifficultyStore:
    """The difficulty of every candidate of the training set.

    Attributes:
        path: its folder.
        decay: beta.
        init: value of a candidate that has not been observed: 0; 0 until the first loss, which is then taken
            whole; or the reference loss.
        epoch: how many times it was folded.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.index = StoreIndex.load(path, manifest)
        self.decay = float(manifest["decay"])
        self.init: EmaInit = manifest["init"]
        self.epoch = max((_epoch_of(file) for file in path.glob("m.e*.npy")), default=0)
        self._values = self._map(self.epoch)
        self._journal: BufferedRandom | None = None
        self._next_step = 0
        self._needed = [0, 0]
        self._reference: Path | None = None
        self._checksums: dict[int, int] = {}
        self._used = self.epoch > 0 or any(file.stat().st_size for file in path.glob("journal.e*"))

    @classmethod
    def create(
        cls,
        path: Path | str,
        *,
        sample_ids: Sequence[int] | NDArray[Any],
        num_targets: Sequence[int] | NDArray[Any],
        decay: float = 0.9,
        init: EmaInit = "zero",
        reference: ReferenceStore | None = None,
        resume: bool = False,
    ) -> DifficultyStore:
        """Make the folder, or open the one that another process of this run just made.

        Args:
            sample_ids, num_targets: one entry a sample.
            reference: the reference losses; needed for `init="reference"`.
            resume: a store that an earlier run used is opened; `rewind` it to that run's checkpoint.

        Raises:
            StoreError: the folder holds another store, or the observations of an earlier run.
        """
        path = Path(path)
        index, _ = StoreIndex.from_counts(sample_ids, num_targets)
        if init == "reference" and reference is None:
            raise ConfigError("ema_init: reference needs the reference store")
        if init == "reference" and reference is not None and reference.index.crc != index.crc:
            raise StoreError(f"{reference.path} was made from other samples than this difficulty store")
        manifest = {
            "schema": 1,
            "kind": KIND,
            "samples": len(index),
            "targets": index.size,
            "index_crc32": index.crc,
            "decay": decay,
            "init": init,
        }

        def fill(folder: Path) -> None:
            index.save(folder)
            if init == "reference" and reference is not None:
                shutil.copyfile(reference.path / "losses.npy", folder / "m.e0.npy")
            else:
                make_array(folder / "m.e0.npy", index.size, "float16", 0.0 if init == "zero" else np.nan)
            write_json(folder / "manifest.json", manifest)

        if not make_folder(path, fill) and read_json(path / "manifest.json", KIND) != manifest:
            raise StoreError(f"{path} holds another difficulty store; choose another folder, or delete it")
        store = cls(path, manifest)
        store._reference = None if reference is None else reference.path
        if store._used and not resume:
            raise StoreError(
                f"{path} holds the observations of an earlier run: open it and load the checkpoint's gate state, "
                "or delete it to start again"
            )
        return store

    @classmethod
    def for_gate(
        cls,
        path: Path | str,
        gate: GateConfig,
        *,
        reference: ReferenceStore | None = None,
        sample_ids: Sequence[int] | NDArray[Any] | None = None,
        num_targets: Sequence[int] | NDArray[Any] | None = None,
        resume: bool = False,
    ) -> DifficultyStore:
        """`create` with a gate's settings; the index is the reference store's where one is given."""
        if reference is not None:
            sample_ids, num_targets = reference.index.ids_M, np.diff(reference.index.offsets_M1)
        if sample_ids is None or num_targets is None:
            raise ConfigError("a difficulty store without a reference store needs sample_ids and num_targets")
        return cls.create(
            path,
            sample_ids=sample_ids,
            num_targets=num_targets,
            decay=gate.difficulty_decay,
            init=gate.ema_init,
            reference=reference,
            resume=resume,
        )

    @classmethod
    def open(cls, path: Path | str) -> DifficultyStore:
        """Open an existing store. If it was used, `rewind` it before the next observation.

        Raises:
            StoreError: it is missing, truncated or damaged.
        """
        path = Path(path)
        return cls(path, read_json(path / "manifest.json", KIND, keys=_KEYS))

    @property
    def epochs(self) -> list[int]:
        """The epochs whose values are still kept."""
        return sorted(_epoch_of(file) for file in self.path.glob("m.e*.npy"))

    def values(self, candidates: Candidates, sample_ids_B: Tensor, *, epoch: int | None = None) -> Tensor:
        """m at the candidates of a batch: float32 BS, nats, NaN elsewhere; 0 where nothing was observed yet.

        Args:
            epoch: an earlier epoch of `epochs`, for looking back; None is the present one.
        """
        slots = self.index.slots(candidates, sample_ids_B, self.path)
        values = self._values if epoch is None else self._map(epoch)
        return slots.spread(np.nan_to_num(values[slots.slot_n].astype(np.float32), nan=0.0))

    def checksum(self, epoch: int) -> int:
        """crc32 of the values at the start of an epoch of `epochs`."""
        return zlib.crc32(np.ascontiguousarray(self._map(epoch)).data)

    def checksums(self) -> dict[str, int]:
        """`checksum` of every epoch of `epochs`, by its number, JSON-able: what `check` compares with."""
        return {str(epoch): self.checksum(epoch) for epoch in self.epochs}

    def check(self, checksums: Mapping[str, int]) -> None:
        """Hold the values to what `checksums` said of them, for whoever reads them after the training.

        Raises:
            StoreError: an epoch's values are gone or not those.
        """
        for epoch, seen in checksums.items():
            file = self.path / f"m.e{epoch}.npy"
            if self.checksum(int(epoch)) != seen:
                raise StoreError(f"{file} is damaged (checksum differs from that of the training's end)")

    def append(self, step: int, slots: Slots, seen_n: NDArray[Any], losses: NDArray[Any]) -> None:
        """Note the losses that a micro-batch observed.

        Args:
            step: optimizer step, never falling.
            slots: where the batch's candidates stand.
            seen_n: bool, which of them were observed.
            losses: float, one for each true entry of `seen_n`, in the order of the rows.
        """
        if self._used:
            raise StoreError(
                f"{self.path} holds observations from before: load the checkpoint's gate state first, "
                "or delete the folder to start again"
            )
        if self._journal is None:
            self._journal = journal.open_end(self._journal_path(self.epoch, process.rank()))
        live_B = slots.rows_B >= 0
        rows_b = slots.rows_B[live_B]
        order_n = np.argsort(slots.slot_n - self.index.offsets_M1[slots.rows_B[slots.row_n]], kind="stable")
        order_n = order_n[np.argsort(slots.row_n[order_n], kind="stable")]
        loss_n = np.zeros(seen_n.shape, dtype=np.float32)
        loss_n[seen_n] = losses
        counts_b = (self.index.offsets_M1[rows_b + 1] - self.index.offsets_M1[rows_b]).astype(np.uint32)
        seen = seen_n[order_n]
        record = journal.Record(step, self.index.ids_M[rows_b], counts_b, seen, to_half(loss_n[order_n][seen]))
        self._journal.write(journal.pack(record))
        self._next_step = step + 1

    def fold(self, group: Any = None) -> None:
        """End of an epoch, on every process: Eq. 2 for all that was observed, once for each sample."""
        self._close_journal()
        process.barrier(group)
        if process.rank(group) == 0:
            self._fold_journals()
            self._tidy()
        process.barrier(group)
        self.epoch += 1
        self._values = self._map(self.epoch)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, JSON-able: the epoch, the next step, and the length of this process's journal. The
        first process notes those of the processes that an earlier start of the run had more."""
        if self._journal is not None:
            self._journal.flush()
            os.fsync(self._journal.fileno())
        rank, world = process.rank(), process.world()
        own = self._journal_path(self.epoch, rank)
        offsets = {str(rank): own.stat().st_size if own.exists() else 0}
        for file in self.path.glob(f"journal.e{self.epoch}.rank*"):
            if rank == 0 and _rank_of(file) >= world:
                offsets[str(_rank_of(file))] = file.stat().st_size
        self._needed = [self._needed[1], self.epoch]
        return {
            "schema": 1,
            "epoch": self.epoch,
            "step": self._next_step,
            "offsets": offsets,
            "values_crc32": self._crc(),
        }

    def rewind(self, state: dict[str, Any]) -> None:
        """Go back to a checkpoint, on every process: whatever was observed or folded since is forgotten.

        The number of processes may differ from that of the checkpoint.

        Raises:
            StoreError: the epoch's array or its journals are no longer what the checkpoint saw.
        """
        self._close_journal()
        epoch, step = int(state["epoch"]), int(state["step"])
        if not (self.path / f"m.e{epoch}.npy").exists():
            epochs = sorted(_epoch_of(file) for file in self.path.glob("m.e*.npy"))
            raise StoreError(
                f"{self.path}: the checkpoint is of epoch {epoch}, the store has epochs {epochs}; "
                "resume from a later checkpoint, or start the run again"
            )
        seen = state.get("values_crc32")
        if seen is not None and process.rank() == 0 and self.checksum(epoch) != seen:
            raise StoreError(
                f"{self.path / f'm.e{epoch}.npy'} is damaged (checksum differs from the checkpoint's); "
                "start the run again"
            )
        offsets = {int(rank): int(end) for rank, end in state["offsets"].items()}
        ranks = {_rank_of(file) for file in self.path.glob(f"journal.e{epoch}.rank*")} | offsets.keys()
        for rank in sorted(ranks):
            if rank % process.world() == process.rank():
                journal.cut(self._journal_path(epoch, rank), step, offsets.get(rank))
        process.barrier()
        if process.rank() == 0:
            for file in [*self.path.glob("m.e*.npy"), *self.path.glob("journal.e*")]:
                if _epoch_of(file) > epoch:
                    file.unlink()
            for file in self.path.glob("m.e*.npy.*.tmp"):  # of a process that was killed while it folded
                file.unlink()
        process.barrier()
        self.epoch, self._next_step, self._needed, self._used = epoch, step, [epoch, epoch], False
        self._checksums = {}
        self._values = self._map(epoch)

    def start_over(self, group: Any = None) -> None:
        """Go back to the values of a new run, on every process; a store that nothing was observed in stays as it is.

        Raises:
            StoreError: it starts from the reference losses, and was opened without them after its first epoch's
                values were deleted.
        """
        self._close_journal()
        process.barrier(group)
        if process.rank(group) == 0 and (self.epoch > 0 or any(self.path.glob("journal.e*"))):
            first, aside = self.path / "m.e0.npy", self.path / "m.e0.npy.tmp"
            if self.init == "reference" and self._reference is not None:
                shutil.copyfile(self._reference / "losses.npy", aside)
            elif self.init != "reference":
                make_array(aside, self.index.size, "float16", 0.0 if self.init == "zero" else np.nan)
            elif not first.exists():
                raise StoreError(f"{self.path} starts from reference losses that are not given; delete the folder")
            if aside.exists():
                aside.replace(first)
            for file in [*self.path.glob("m.e*.npy"), *self.path.glob("journal.e*")]:
                if file != first:
                    file.unlink()
        process.barrier(group)
        self.epoch, self._next_step, self._needed, self._used = 0, 0, [0, 0], False
        self._checksums = {}
        self._values = self._map(0)

    def _fold_journals(self) -> None:
        """Write the next epoch's array from this epoch's array and journals."""
        aside = self.path / f"m.e{self.epoch + 1}.npy.{os.getpid()}.tmp"
        try:
            shutil.copyfile(self.path / f"m.e{self.epoch}.npy", aside)
            self._fold_into(aside)
            aside.replace(self.path / f"m.e{self.epoch + 1}.npy")
        finally:
            aside.unlink(missing_ok=True)

    def _fold_into(self, array_path: Path) -> None:
        out = open_array(array_path, (self.index.size,), "float16", writable=True)
        files = sorted(self.path.glob(f"journal.e{self.epoch}.rank*"), key=_rank_of)
        first_M = np.full(len(self.index), np.iinfo(np.int64).max)
        for file in files:
            for _, record in self._whole_records(file):
                np.minimum.at(first_M, self.index.rows(record.ids_b, self.path), record.step)
        for file in files:
            for _, record in self._whole_records(file):
                self._apply(record, out, first_M)
        assert isinstance(out, np.memmap)
        out.flush()

    def _whole_records(self, file: Path) -> Any:
        end = 0
        for end, record in journal.records(file):
            yield end, record
        if end != file.stat().st_size:
            raise StoreError(f"{file} is damaged after byte {end}; resume from the last checkpoint")

    def _apply(self, record: journal.Record, out: NDArray[Any], first_M: NDArray[Any]) -> None:
        """Eq. 2, in float32, for the samples of a record whose first visit of the epoch it is."""
        rows_b = self.index.rows(record.ids_b, self.path)
        counts_b = record.counts_b.astype(np.int64)
        keep_b = first_M[rows_b] == record.step
        keep_b &= np.isin(np.arange(rows_b.size), np.unique(rows_b, return_index=True)[1])
        first_M[rows_b[keep_b]] = -1  # visited: a second record of the same step is a repeat
        starts_b = np.cumsum(counts_b) - counts_b
        place = np.repeat(self.index.offsets_M1[rows_b] - starts_b, counts_b) + np.arange(counts_b.sum())
        kept = np.repeat(keep_b, counts_b)
        slots = place[record.seen & kept]
        loss = record.losses[kept[record.seen]].astype(np.float32)
        old = out[slots].astype(np.float32)
        new = np.where(np.isnan(old), loss, self.decay * old + (1.0 - self.decay) * loss)
        out[slots] = new.astype(np.float16)

    def _tidy(self) -> None:
        keep = min(*self._needed, self.epoch)
        for file in [*self.path.glob("m.e*.npy"), *self.path.glob("journal.e*")]:
            if _epoch_of(file) < keep:
                file.unlink()

    def _journal_path(self, epoch: int, rank: int) -> Path:
        return self.path / f"journal.e{epoch}.rank{rank}"

    def _map(self, epoch: int) -> NDArray[Any]:
        return open_array(self.path / f"m.e{epoch}.npy", (self.index.size,), "float16")

    def _crc(self) -> int:
        """`checksum` of the present epoch, which is read once: its values do not change."""
        if self.epoch not in self._checksums:
            self._checksums = {self.epoch: self.checksum(self.epoch)}
        return self._checksums[self.epoch]

    def _close_journal(self) -> None:
        if self._journal is not None:
            self._journal.close()
            self._journal = None


def _epoch_of(file: Path) -> int:
    return int(file.name.split(".")[1].removeprefix("e"))


def _rank_of(file: Path) -> int:
    return int(file.name.rsplit("rank", 1)[1])
