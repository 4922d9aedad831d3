"""The error of media that cannot be read."""

from __future__ import annotations

from harness.common.errors import DataError


class VideoError(DataError):
    """A media file is missing, damaged, or shorter than its bounds."""
