"""`python -m harness` and the command `harness`."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import Final

_NEEDS: Final = ("typer", "pydantic", "yaml")
"""Without them not even the help can be shown; they come with the extra `harness`, as all others do."""


def main() -> None:
    """The command, or what to install where the library is installed alone."""
    absent = [name for name in _NEEDS if find_spec(name) is None]
    if absent:
        sys.stderr.write(
            f"harness needs {', '.join(absent)}, which the library alone does not\n"
            '  pip install "regate[harness]"   (or, in a checkout, pip install -c constraints.txt ".[harness]")\n'
        )
        raise SystemExit(3)
    try:
        from harness.cli.main import main as command

        command()
    except KeyboardInterrupt:  # before a verb began, which ends itself in order
        sys.stderr.write("stopped; nothing was begun\n")
        raise SystemExit(75) from None


if __name__ == "__main__":
    main()
