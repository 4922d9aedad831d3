"""Files of a few int64 arrays with an entry for each sample of a data set, kept beside the stores.

They are numpy's archives, which hold a checksum of each array.
"""

from __future__ import annotations

import zlib
from tokenize import TokenError
from typing import TYPE_CHECKING, Final
from zipfile import BadZipFile

import numpy as np

from harness.common.files import atomic_file, check_kind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

_UNREADABLE: Final = (
    *(OSError, ValueError, KeyError, EOFError, TypeError, AttributeError, SyntaxError, TokenError),
    *(BadZipFile, zlib.error, RuntimeError, OverflowError, MemoryError),
)
"""What numpy raises of a damaged archive."""


def read_arrays(path: Path, names: Sequence[str], samples: int) -> list[NDArray[np.int64]] | None:
    """What `write_arrays` wrote, in the order of `names`; None where the file is not what was written."""
    check_kind(path)
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = [archive[name] for name in names]
    except _UNREADABLE:
        return None
    whole = all(values.shape == (samples,) and values.dtype == np.int64 for values in arrays)
    return arrays if whole else None


def write_arrays(path: Path, arrays: Mapping[str, NDArray[np.int64]]) -> None:
    """Write them in one step."""
    with atomic_file(path) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
