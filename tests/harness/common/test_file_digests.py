"""A byte anywhere in a large file is seen, and a file that is the same is read once."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from harness.common import file_digests
from harness.common.errors import EnvironmentProblem
from harness.common.file_digests import content_digest

if TYPE_CHECKING:
    from pathlib import Path


def test_one_bit_in_the_middle_is_another_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, memory, read = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"], tmp_path / "memory.json", []
    for file in files:
        file.write_bytes(bytes(3 << 20))
    digest_of = file_digests.file_digest
    monkeypatch.setattr(file_digests, "file_digest", lambda path: read.append(path.name) or digest_of(path))
    first = content_digest(files, memory, say=read.append)
    assert content_digest(files, memory, say=read.append) == first
    assert read == ["a.safetensors", "b.safetensors"], "each is read once"

    with files[1].open("r+b") as file:
        file.seek(3 << 19)
        file.write(b"\1")
    os.utime(files[1], ns=(1, 1))
    assert content_digest(files, memory, say=read.append) != first
    assert read[2:] == ["b.safetensors"]

    memory.write_text(memory.read_text()[:40])
    files[1].write_bytes(bytes(3 << 20))
    assert content_digest(files, memory, say=read.append) == first, "a damaged memory is made anew"


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match=r"absent\.safetensors: cannot be read"):
        content_digest([tmp_path / "absent.safetensors"], tmp_path / "memory.json", say=lambda _: None)
