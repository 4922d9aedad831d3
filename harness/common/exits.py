"""What the command line says, and the code it ends with, when something goes wrong."""

from __future__ import annotations

import errno
import functools
import sys
import traceback
from typing import TYPE_CHECKING, Final, ParamSpec

from harness.common.errors import HarnessError, RecipeError
from harness.common.signals import terminate_as_interrupt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

P = ParamSpec("P")

FAILED: Final = 1
RECIPE: Final = 2
ENVIRONMENT: Final = 3
STALE: Final = 5
STOPPED: Final = 75

_REGATE_CODES: Final = {"ConfigError": RECIPE, "StoreError": STALE, "MismatchError": STALE}
"""Exit codes of `regate`'s errors by class; the others mean that the run failed."""
_ADVICE: Final = {
    errno.ENOSPC: "no space left on the disk; free some (checkpoints of finished runs are the largest things in the "
    "results folder) and give the same command again: it goes on where it was",
    errno.EDQUOT: "the disk quota is used up; free some space and give the same command again: it goes on "
    "where it was",
    errno.EADDRINUSE: "the network port is taken by another program; stop that program or choose another port, and "
    "give the same command again",
    errno.EACCES: "permission denied; choose folders you may write to (paths.data, paths.weights, paths.stores, "
    "paths.results)",
    errno.EPERM: "not permitted; choose folders you may write to (paths.data, paths.weights, paths.stores, "
    "paths.results)",
    errno.EROFS: "the file system is read-only; choose other folders (paths.data, paths.weights, paths.stores, "
    "paths.results)",
    errno.ENOTDIR: "a file stands where a folder is wanted; choose other folders (paths.data, paths.weights, "
    "paths.stores, paths.results)",
    errno.EISDIR: "a folder stands where a file is wanted; move it away and give the same command again",
    errno.ENAMETOOLONG: "the name of a file or folder is too long for this file system; choose a shorter one",
    errno.EMFILE: "too many open files; raise the limit (ulimit -n) and give the same command again",
}
"""What to do about the faults of the machine, by error number: exit 3."""


def guarded(verb: Callable[P, None]) -> Callable[P, None]:
    """Run a verb; print the mistakes of users as one message, and end with the code that belongs to them.

    An error that is nobody's known mistake keeps its traceback and ends with 1.
    """

    @functools.wraps(verb)
    def wrapper(*arguments: P.args, **options: P.kwargs) -> None:
        with terminate_as_interrupt():
            try:
                _refuse_empty(options)
                verb(*arguments, **options)
            except KeyboardInterrupt:
                _stop("stopped; nothing is lost: the same command resumes", STOPPED)
            except Exception as error:
                # typer ends a verb with exceptions of its own, and a closed pipe is for it to handle.
                if type(error).__module__.split(".")[0] in ("typer", "click") or isinstance(error, BrokenPipeError):
                    raise
                _stop(*explained(error))

    return wrapper


def _refuse_empty(options: Mapping[str, object]) -> None:
    """A text of nothing is what a shell makes of a variable that is not set; every verb would read it otherwise.

    Raises:
        RecipeError: an argument, or a value of an option, is empty.
    """
    for value in options.values():
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and not text.strip():
                raise RecipeError("an argument is empty", hint="was a variable of the shell not set?")


def explained(error: Exception) -> tuple[str, int]:
    """What to print and the exit code for an exception."""
    if isinstance(error, HarnessError):
        return _with_hint(str(error), error.hint), error.exit_code
    for cause in _causes(error):
        if type(cause).__module__ == "regate.errors":
            codes = [_REGATE_CODES[kind.__name__] for kind in type(cause).__mro__ if kind.__name__ in _REGATE_CODES]
            return str(cause), codes[0] if codes else FAILED
        number = _machine_fault(cause)
        if number is not None:
            where = getattr(cause, "filename2", None) or getattr(cause, "filename", None)
            return f"{f'{where}: ' if where else ''}{_ADVICE[number]}\n  ({cause})", ENVIRONMENT
    return "".join(traceback.format_exception(error)).rstrip(), FAILED


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _machine_fault(error: BaseException) -> int | None:
    """The error number of a fault of the machine, also where a library wrapped it in its own exception."""
    if isinstance(error, OSError) and error.errno in _ADVICE:
        return error.errno
    if "No space left on device" in str(error) or "database or disk is full" in str(error):
        return errno.ENOSPC
    return None


def _with_hint(message: str, hint: str | None) -> str:
    return f"{message}\n  {hint}" if hint else message


def _stop(message: str, code: int) -> None:
    sys.stdout.flush()
    sys.stderr.write(message + "\n")
    raise SystemExit(code)
