"""torch's reader of distributed checkpoints, whose list of tensors cannot run code.

`.metadata` is a pickle, and torch unpickles it freely: a file from elsewhere does then what it likes, before any of
it is looked at. Here it may name the classes of that list alone. Entries that are no tensors are not among them:
torch would unpickle their bytes freely, too.
"""

from __future__ import annotations

import importlib
import pickle
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader

from harness.common.errors import DataError

if TYPE_CHECKING:
    from torch.distributed.checkpoint.metadata import Metadata

_METADATA: Final = "torch.distributed.checkpoint.metadata"
_NAMES: Final = frozenset(
    {
        *((_METADATA, name) for name in ("ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta")),
        *((_METADATA, name) for name in ("TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING")),
        ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
        ("torch.serialization", "_get_layout"),
        ("torch", "Size"),
        ("pathlib", "PosixPath"),
        ("pathlib._local", "PosixPath"),
    }
)
"""What the list of a checkpoint of tensors names, beside torch's dtypes."""

_NO_LIST: Final = (
    *(pickle.UnpicklingError, AttributeError, EOFError, ImportError, IndexError, KeyError, TypeError, ValueError),
)
"""What unpickling bytes that are no pickle, or a pickle of something else, may raise."""


class ShardReader(FileSystemReader):
    """Reads what `torch.distributed.checkpoint.save` wrote of tensors, and nothing else.

    Raises:
        DataError: by `read_metadata`: the list names something else, or is no pickle.
    """

    def read_metadata(self, *_: Any, **options: Any) -> Metadata:
        path = self._get_metadata_path(options.get("rank"))
        try:
            with self.fs.create_stream(path, "rb") as stream:
                metadata: Metadata = _Unpickler(stream).load()
            metadata.storage_meta.load_id = self.load_id  # type: ignore[union-attr]
        except _NO_LIST as error:
            raise DataError(
                f"{path}: is not the list of a checkpoint's tensors: {error}",
                hint="it was not written here, or is damaged: move the checkpoint away, and the one before is taken",
            ) from error
        return metadata


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _NAMES:
            return getattr(importlib.import_module(module), name)
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        raise pickle.UnpicklingError(f"it names {module}.{name}")
