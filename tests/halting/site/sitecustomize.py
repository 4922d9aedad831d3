"""Every Python process of a test that has this folder on its path stops at the moment that the test asks for.

The moment is in the environment variable REGATE_TEST_HALT, written by `tests.halting`. A process that reaches it says
so in a file and waits there: for a signal that it handles, for the file's permission to go on, or to be killed.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import sys
import time
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

MOMENT = json.loads(os.environ.get("REGATE_TEST_HALT", "null"))
HUNG_S = 1800.0
"""A test that has not come back by then is gone."""


class Halt:
    """Counts what happens, and stops the process once."""

    def __init__(self) -> None:
        self.left = int(MOMENT["count"])
        self.reached = Path(MOMENT["reached"])

    def happened(self) -> None:
        self.left -= 1
        if self.left == 0 and not self.reached.exists():
            self.stop()

    def stop(self) -> None:
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        before = signal.set_wakeup_fd(writing)
        temporary = self.reached.with_name(f"{self.reached.name}.{os.getpid()}")
        temporary.write_text(str(os.getpid()))
        temporary.replace(self.reached)
        until = time.monotonic() + HUNG_S
        while not select.select([reading], [], [], 0.05)[0] and not self.reached.with_suffix(".go").exists():
            if time.monotonic() > until:
                os._exit(70)
        signal.set_wakeup_fd(before)
        os.close(reading)
        os.close(writing)


class Calls:
    """An import hook: the named function tells the halt of each of its calls, after it has returned."""

    def __init__(self, halt: Halt) -> None:
        self.halt = halt
        self.module, self.name = MOMENT["what"].split(":")

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != self.module:
            return None
        spec = PathFinder.find_spec(name, path, target)
        assert spec is not None
        load = spec.loader.exec_module  # type: ignore[union-attr]

        def load_and_wrap(module: Any) -> None:
            load(module)
            self.wrap(module)

        spec.loader.exec_module = load_and_wrap  # type: ignore[union-attr,method-assign]
        return spec

    def wrap(self, module: Any) -> None:
        *owners, attribute = self.name.split(".")
        owner = module
        for name in owners:
            owner = getattr(owner, name)
        setattr(owner, attribute, self.wrapped(getattr(owner, attribute)))

    def wrapped(self, function: Any) -> Any:
        def call(*arguments: Any, **settings: Any) -> Any:
            value = function(*arguments, **settings)
            if all(settings.get(name) == wanted for name, wanted in MOMENT["where"].items()):
                self.halt.happened()
            return value

        return call


def opened(halt: Halt) -> Any:
    """An audit hook: a file whose path fits is about to be opened."""
    fits = re.compile(MOMENT["what"])

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str) and fits.search(arguments[0]):
            halt.happened()

    return hook


if MOMENT is not None:
    if MOMENT["kind"] == "call":
        calls = Calls(Halt())
        sys.meta_path.insert(0, calls)  # type: ignore[arg-type]
        if calls.module in sys.modules:  # in a process that was forked from one that has imported everything
            calls.wrap(sys.modules[calls.module])
    else:
        sys.addaudithook(opened(Halt()))
