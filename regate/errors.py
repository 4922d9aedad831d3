"""The exception family of `regate`: what is wrong, where, and what to do, in one message."""

from __future__ import annotations


class RegateError(Exception):
    """Base of every error that `regate` raises for a caller's mistake or for damaged data."""


class ConfigError(RegateError, ValueError):
    """A gate setting is outside its range, or two settings contradict each other."""


class LayoutError(RegateError, ValueError):
    """Labels, masks or kinds of a batch contradict each other."""


class StoreError(RegateError):
    """A store on disk is damaged, incomplete, or was made from something else."""


class MismatchError(StoreError):
    """A sample's targets are not those that the store was made from."""


class UnsupportedModelError(RegateError):
    """The model does something that elision cannot reproduce exactly."""


class NonFiniteLossError(RegateError):
    """A per-token loss is NaN or infinite."""
