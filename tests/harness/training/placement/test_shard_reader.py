"""A checkpoint's list of tensors is read, and one that would run code is refused before it does."""

from __future__ import annotations

import os
import pickle
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.distributed.checkpoint.state_dict_saver import save

from harness.common.errors import DataError
from harness.training.placement.shard_reader import ShardReader

if TYPE_CHECKING:
    from pathlib import Path

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool, torch.uint8, torch.float64)


class Harmful:
    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_tensors_of_every_kind_are_listed(tmp_path: Path) -> None:
    tensors = {str(dtype): torch.ones((2, 3), dtype=dtype) for dtype in DTYPES} | {"scalar": torch.tensor(1.0)}
    save(tensors, checkpoint_id=tmp_path, no_dist=True)
    entries = ShardReader(tmp_path).read_metadata().state_dict_metadata
    assert {name: (entry.size, entry.properties.dtype) for name, entry in entries.items()} == {
        name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()
    }


def test_code_in_the_list_is_not_run(tmp_path: Path) -> None:
    (tmp_path / ".metadata").write_bytes(pickle.dumps(Harmful(tmp_path / "done")))
    with pytest.raises(DataError, match=r"\.metadata: is not the list of .* tensors: it names posix\.mkdir"):
        ShardReader(tmp_path).read_metadata()
    assert not (tmp_path / "done").exists()


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_entries_that_torch_would_unpickle_are_refused(tmp_path: Path) -> None:
    save({"entry": Harmful(tmp_path / "done")}, checkpoint_id=tmp_path, no_dist=True)
    with pytest.raises(DataError, match=r"it names .*BytesStorageMetadata"):
        ShardReader(tmp_path).read_metadata()
    assert not (tmp_path / "done").exists()


@pytest.mark.parametrize("content", [b"", b"no pickle", pickle.dumps([1])])
def test_what_is_no_list_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / ".metadata").write_bytes(content)
    with pytest.raises(DataError, match="is not the list of a checkpoint's tensors"):
        ShardReader(tmp_path).read_metadata()
