"""Every command of the README and of docs/ is run: what reads, whole; what needs weights, data or finished runs, up
to the message that names them."""

from __future__ import annotations

import re
import shlex
import sys
from typing import TYPE_CHECKING

import pytest

from harness.cli import main as cli
from tests.docs.test_docs import DOCUMENTS, ROOT, blocks, name_of

if TYPE_CHECKING:
    from pathlib import Path

PAGES = [path for path in DOCUMENTS if path.name == "README.md" or path.parent.name == "docs"]
SET_UP = ("python3 -m venv",)
"""The two set-up commands are the main job and the tests themselves."""

MISSING = {
    ("run", "videollama2_baseline"): (3, "Qwen2-7B-Instruct"),
    ("run", "videochat2_baseline"): (3, "Mistral-7B-Instruct-v0.2"),
    ("run", "videollama2_regate"): (3, "Qwen2-7B-Instruct"),
    ("run", "videollama2_regate_teacher_1.5b"): (3, "Qwen2-7B-Instruct"),
    ("run", "suites/videollama2"): (3, "Qwen2-7B-Instruct"),
    ("eval", "evaluate/videollama2_official"): (3, "VideoLLaMA2.1-7B-16F"),
    ("doctor", "videollama2_regate"): (3, "Qwen2-7B-Instruct"),
    ("data", "check"): (4, "videochatgpt_tune.json"),
    ("compare", "videollama2_baseline"): (4, "has no record"),
    ("report", "videollama2_regate"): (4, "has no record"),
    ("trace", "accuracy_my_eval"): (4, "no finished run"),
    ("show", "my_run"): (2, "no finished run"),
    ("tables", "--check"): (4, "no finished run"),
    ("data", "show"): (4, "data are missing"),
}
"""Verb and first name of a command that cannot be run to its end in an empty folder -> its exit code, and what its
message names."""


def commands(path: Path) -> list[str]:
    """Every `harness` command with arguments: of the shell blocks, and those in inline code that name a document."""
    text = path.read_text(encoding="utf-8")
    shell = [line.strip() for block in blocks(path, "bash") for line in block.splitlines()]
    inline = re.findall(r"`(harness (?:run|plan|doctor|tables|trace|eval|data show) [^`\n]+)`", text)
    found = [line for line in shell if line and not line.startswith(SET_UP)]
    return list(dict.fromkeys([*found, *(line for line in inline if not re.search(r"[A-Z]{3,}|\.\.\.", line))]))


ALL = [(name_of(path), command) for path in PAGES for command in commands(path)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with what the pages call a user's own, and the results that the checkout has."""
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "recipes" / "tiny_internvl_regate.yaml").read_text(encoding="utf-8")
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "evidence").symlink_to(ROOT / "results" / "evidence")
    return tmp_path


def test_the_pages_have_commands() -> None:
    assert len(ALL) > 15


@pytest.mark.parametrize(("page", "command"), ALL, ids=[f"{page}: {command[:60]}" for page, command in ALL])
def test_a_command_does_what_its_page_says(
    page: str,
    command: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = shlex.split(command, comments=True)
    assert words[0] == "harness", f"{page}: only harness is documented in blocks: {command}"
    if words[1] == "init":
        (folder / "mine.yaml").unlink()
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    code, named = MISSING.get((words[1], words[2] if len(words) > 2 else ""), (0, ""))
    assert int(ended.value.code or 0) == code, f"{command}\n{out}\n{err}"
    assert named in out + err
    written = sorted(path.name for path in (folder / "results").iterdir())
    assert written == ["evidence"] or words[1] == "tables", "what reads or is refused writes nothing"
