"""Where media lie: the folder that an annotation's names start at, and others that a recipe allows by a name.

A data set knows a file by its stored name: `clips/a.mp4` below the folder of media, or `/anet/a.mp4` below the folder
that `paths.media_roots` calls anet. So nothing that a data set is known by tells where its folders lie.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from harness.data.records import RecordError, short

if TYPE_CHECKING:
    from collections.abc import Mapping

_DRIVE: Final = re.compile(r"[A-Za-z]:[/\\]|\\\\")
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|data:")


def media_roots(paths: Mapping[str, str]) -> dict[str, Path]:
    """`paths.media_roots` with whole paths; links are not followed."""
    return {name: Path(os.path.abspath(folder)) for name, folder in paths.items()}  # noqa: PTH100 - keeps links


@dataclass(frozen=True, slots=True)
class MediaFolders:
    """The folders of a data set's media.

    Attributes:
        root: the folder that relative names start at.
        named: whole paths of the folders that the recipe allows, by their names.
    """

    root: Path
    named: Mapping[str, Path] = field(default_factory=dict)

    def path(self, name: str) -> Path:
        """The file of a stored name."""
        if not name.startswith("/"):
            return self.root / name
        folder, _, rest = name[1:].partition("/")
        return self.named[folder] / rest

    def stored_name(self, written: str, folder: str = "") -> str:
        """The stored name of what an annotation says.

        Args:
            folder: below the root, of the annotation's media; empty or ending with "/". Relative names start there.

        Raises:
            RecordError: it lies in none of the folders, or is no name of a file.
        """
        if written[:1] not in ("/", "~") and ".." not in written and "\\" not in written and ":" not in written:
            return folder + written
        if written[:1] != "/" and not _is_odd(written):  # a colon or two dots within a name
            return folder + written
        if _SCHEME.match(written):
            raise _refused(written, "it is an address: fetch the file and name it there")
        if "\\" in written or _DRIVE.match(written):
            raise _refused(written, "write paths with / and no drive")
        if written.startswith("~"):
            raise _refused(written, "~ stands for no folder here: write the whole path")
        base = os.path.abspath(self.root / folder)  # noqa: PTH100 - a link is not followed
        return self._below_a_root(written, base)

    def _below_a_root(self, written: str, base: str) -> str:
        joined = os.path.join(base, written)  # noqa: PTH118
        target = _lexical(joined)
        parent = os.path.dirname(joined)  # noqa: PTH120
        # Where `..` follows a link, the system opens another file than the one that the text says.
        if ".." in written and os.path.realpath(parent) != os.path.realpath(os.path.dirname(target)):  # noqa: PTH120
            raise _refused(written, "its .. follows a link: write the path without ..")
        for name, folder in sorted(self.named.items(), key=lambda item: len(item[1].parts), reverse=True):
            if target == str(folder):
                raise _refused(written, f"it is the folder paths.media_roots.{name} itself: name a file in it")
            if target.startswith(f"{str(folder).rstrip('/')}/"):
                return f"/{name}{target[len(str(folder).rstrip('/')) :]}"
        if target.startswith(f"{base.rstrip('/')}/"):
            raise _refused(written, f"name it relative to that folder: {short(target[len(base.rstrip('/')) + 1 :])}")
        outside = short(os.path.dirname(target))  # noqa: PTH120
        known = "".join(f"; {name} is {short(folder)}" for name, folder in list(self.named.items())[:4])
        raise _refused(
            written,
            "name files relative to data.media, with /, or allow a folder that they lie in by a name of yours, as "
            f"in paths.media_roots.NAME={outside} (a link in the folder of media may lead elsewhere, too){known}",
        )


def _is_odd(written: str) -> bool:
    drive = _DRIVE.match(written) or _SCHEME.match(written)
    return written.startswith("~") or "\\" in written or ".." in written.split("/") or drive is not None


def _lexical(path: str) -> str:
    """Without `.`, `..` and doubled slashes, also at the beginning, where POSIX would keep two."""
    whole = os.path.normpath(path)
    return whole[1:] if whole.startswith("//") else whole


def _refused(written: str, hint: str) -> RecordError:
    return RecordError(f"{short(written)} is no path below the folder of media: {hint}")
