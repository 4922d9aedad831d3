"""Work in a fork of this process, which may be left without disk, files or memory."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


def in_a_fork(work: Callable[[], Any]) -> tuple[Any, int]:
    """What the work returns, as JSON holds it, and the fork's wait status; None of a fork that ended without a word.

    The caller has computed nothing: threads of OpenMP do not survive a fork.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        with os.fdopen(writer, "w") as file:
            json.dump(work(), file)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        content = file.read()
    _, status = os.waitpid(child, 0)
    return json.loads(content) if content else None, status
