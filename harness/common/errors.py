"""Errors for users: what, where, and what to do, with the exit code of the command line."""

from __future__ import annotations

from typing import ClassVar


class HarnessError(Exception):
    """Base of the errors that the command line prints without a traceback. Exit 1: the run failed."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class RecipeError(HarnessError):
    """The recipe, or the way the command was called, is wrong."""

    exit_code = 2


class EnvironmentProblem(HarnessError):
    """Weights, packages, disk or ports that the run needs are not there."""

    exit_code = 3


class DataError(HarnessError):
    """Data are missing or damaged."""

    exit_code = 4


class StaleError(HarnessError):
    """Results on disk were made from something else."""

    exit_code = 5


class Preempted(HarnessError):
    """The run was asked to stop; the same command resumes it."""

    exit_code = 75
