"""Encodings that one pass keeps: the batches made from them are those of encoding again, on every process."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from harness.common.errors import DataError
from harness.common.progress import Progress
from harness.data.loading.batches import text_batches
from harness.data.loading.text_rows import TextRows, TextRowsWriter, path_of
from harness.training.stores.target_index import index_targets
from regate.types import Kind
from tests.harness.data.loading.test_epoch_view import DATA, processor

if TYPE_CHECKING:
    from pathlib import Path

    from harness.data.sample import Batch
    from harness.models.tiny.processor import TinyProcessor

__all__ = ["processor"]
TOKENS = 300


def _kept(processor: TinyProcessor, path: Path) -> TextRows:
    writer = TextRowsWriter(processor.placeholder_id)
    for _ in text_batches(DATA, processor, tokens_per_batch=TOKENS, seen=writer.add):
        continue
    writer.save(path)
    rows = TextRows.open(path, len(DATA.samples))
    assert rows is not None
    return rows


def _same(one: Batch, other: Batch) -> bool:
    names = ("labels_BS", "kind_BS", "ordinal_BS", "tokens_BS")
    return (
        torch.equal(one.sample_ids_B, other.sample_ids_B)
        and one.inputs.keys() == other.inputs.keys()
        and all(torch.equal(one.inputs[name], other.inputs[name]) for name in one.inputs)
        and all(torch.equal(getattr(one.layout, name), getattr(other.layout, name)) for name in names)
    )


@pytest.mark.parametrize("parts", [1, 3])
def test_batches_are_those_of_encoding_again(processor: TinyProcessor, tmp_path: Path, parts: int) -> None:
    rows = _kept(processor, tmp_path / "rows.bin")
    fresh = list(text_batches(DATA, processor, tokens_per_batch=TOKENS))
    assert len(fresh) > 2 * parts
    assert any(bool((batch.layout.kind_BS == Kind.VISUAL).any()) for batch in fresh)
    for part in range(parts):
        kept = list(rows.batches(processor, tokens_per_batch=TOKENS, part=part, parts=parts))
        expected = fresh[part::parts]
        assert len(kept) == len(expected)
        assert all(map(_same, kept, expected))


def test_targets_are_counted_and_rows_kept_in_one_pass(
    processor: TinyProcessor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = index_targets(DATA, processor, "targets", tmp_path / "plain", Progress(quiet=True))
    assert not path_of(tmp_path / "plain", DATA, processor).exists()
    kept = index_targets(DATA, processor, "targets", tmp_path, Progress(quiet=True), keep_rows=True)
    assert (kept.sample_ids == plain.sample_ids).all()
    assert (kept.checksums == plain.checksums).all()
    assert path_of(tmp_path, DATA, processor).exists()
    monkeypatch.setattr(type(processor), "encode", lambda *_: pytest.fail("encoded again"))
    text = index_targets(DATA, processor, "text", tmp_path, Progress(quiet=True), keep_rows=True)
    assert (text.num_targets >= kept.num_targets).all()


def test_rows_that_ids_and_kinds_do_not_tell_are_not_kept(processor: TinyProcessor, tmp_path: Path) -> None:
    sample = DATA.samples[0]
    row = processor.encode(sample, None)
    for other in (replace(row, extra={"x": torch.zeros(1)}), replace(row, ordinal_S=row.ordinal_S + 1)):
        writer = TextRowsWriter(processor.placeholder_id)
        writer.add(row)
        assert writer.usable
        writer.add(other)
        writer.save(tmp_path / "rows.bin")
        assert not (tmp_path / "rows.bin").exists()


def test_a_damaged_file_is_named_or_not_read(processor: TinyProcessor, tmp_path: Path) -> None:
    path = tmp_path / "rows.bin"
    _kept(processor, path)
    raw = path.read_bytes()
    path.write_bytes(raw[:-1])
    assert TextRows.open(path, len(DATA.samples)) is None
    path.write_bytes(raw[:20] + b"x" + raw[21:])
    assert TextRows.open(path, len(DATA.samples)) is None
    path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    rows = TextRows.open(path, len(DATA.samples))
    assert rows is not None
    with pytest.raises(DataError, match=r"rows\.bin: row 39 is not what was written"):
        list(rows.batches(processor, tokens_per_batch=TOKENS))
    assert not path.exists()
