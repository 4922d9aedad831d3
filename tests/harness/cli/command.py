"""`harness ...` in the test's own process, as the installed command starts it."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from harness.cli import main as cli


class Command:
    """Runs `harness ...` in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys, self._monkeypatch = capsys, monkeypatch
        self.out = self.err = ""

    def __call__(self, *arguments: str) -> int:
        self._monkeypatch.setattr(sys, "argv", ["harness", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        self.out, self.err = self._capsys.readouterr()
        assert "Traceback" not in self.err
        return int(ended.value.code or 0)

    def json(self, *arguments: str, code: int = 0) -> dict[str, Any]:
        assert self(*arguments, "--json") == code, self.err
        answer: dict[str, Any] = json.loads(self.out)
        assert answer["schema"] == 1
        return answer
