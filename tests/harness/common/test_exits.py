"""Which message and which exit code every kind of exception gets."""

from __future__ import annotations

import errno
import signal

import pytest

from harness.common.errors import DataError, EnvironmentProblem, HarnessError, Preempted, RecipeError, StaleError
from harness.common.exits import explained, guarded
from regate.errors import ConfigError, LayoutError, MismatchError, NonFiniteLossError, RegateError, StoreError


def chained(outer: Exception, inner: Exception) -> Exception:
    outer.__cause__ = inner
    return outer


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (HarnessError("it broke"), 1, "it broke"),
        (RecipeError("wrong key", hint="look"), 2, "wrong key\n  look"),
        (EnvironmentProblem("no weights"), 3, "no weights"),
        (DataError("bad clip"), 4, "bad clip"),
        (StaleError("other data"), 5, "other data"),
        (Preempted("stopped"), 75, "stopped"),
        (ConfigError("keep_ratio is 2"), 2, "keep_ratio is 2"),
        (StoreError("half written"), 5, "half written"),
        (MismatchError("other targets"), 5, "other targets"),
        (NonFiniteLossError("nan"), 1, "nan"),
        (LayoutError("labels"), 1, "labels"),
        (RegateError("anything"), 1, "anything"),
        (OSError(errno.ENOSPC, "No space left on device", "out/x.pt"), 3, "out/x.pt: no space left on the disk"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), 3, "quota"),
        (OSError(errno.EADDRINUSE, "Address already in use"), 3, "port"),
        (PermissionError(errno.EACCES, "Permission denied", "results"), 3, "results: permission denied"),
        (OSError(errno.EROFS, "Read-only file system"), 3, "read-only"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "a/b"), 3, "a/b: "),
        (RuntimeError("I/O error: No space left on device (os error 28)"), 3, "no space left on the disk"),
        (RuntimeError("(sqlite3.OperationalError) database or disk is full"), 3, "no space left on the disk"),
        (chained(RuntimeError("could not save"), OSError(errno.ENOSPC, "No space")), 3, "no space left on the disk"),
        (chained(RuntimeError("in the loop"), StoreError("half written")), 5, "half written"),
    ],
)
def test_a_known_mistake_is_one_message_without_a_traceback(error: Exception, code: int, words: str) -> None:
    message, found = explained(error)
    assert found == code
    assert message.startswith(words) or words in message.splitlines()[0]
    assert "Traceback" not in message


@pytest.mark.parametrize(
    "error", [ValueError("a bug"), KeyError("x"), FileNotFoundError(errno.ENOENT, "No such file")]
)
def test_an_unknown_error_keeps_its_traceback(error: Exception) -> None:
    try:
        raise error
    except type(error) as caught:
        message, code = explained(caught)
    assert code == 1
    assert message.startswith("Traceback")
    assert "test_exits.py" in message


def test_an_error_about_the_machine_while_handling_another_is_found() -> None:
    def save() -> None:
        try:
            raise ValueError("first")
        except ValueError:
            raise OSError(errno.ENOSPC, "No space left on device") from None

    with pytest.raises(OSError, match="No space") as caught:
        save()
    assert explained(caught.value)[1] == 3


def test_a_guarded_verb_ends_with_the_code_and_prints_once(capsys: pytest.CaptureFixture[str]) -> None:
    @guarded
    def verb() -> None:
        raise DataError("bad clip", hint="replace it")

    with pytest.raises(SystemExit) as ended:
        verb()
    assert ended.value.code == 4
    out, err = capsys.readouterr()
    assert (out, err) == ("", "bad clip\n  replace it\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_a_verb_with_75(capsys: pytest.CaptureFixture[str], number: signal.Signals) -> None:
    cleaned: list[bool] = []

    @guarded
    def verb() -> None:
        try:
            signal.raise_signal(number)
        finally:
            cleaned.append(True)

    before = signal.getsignal(signal.SIGTERM)
    # As in a terminal: a shell starts its background jobs deaf to Ctrl-C.
    heard = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(SystemExit) as ended:
            verb()
    finally:
        signal.signal(signal.SIGINT, heard)
    assert ended.value.code == 75
    assert cleaned == [True]
    assert "the same command resumes" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_closed_pipe_is_left_to_the_caller() -> None:
    @guarded
    def verb() -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    with pytest.raises(BrokenPipeError):
        verb()
