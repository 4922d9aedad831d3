"""What the documents name exists: files, commands, recipes, functions. They cannot rot without a test saying so."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer.main

import regate
from harness.cli.main import app
from harness.config.load import RECIPE, is_override, shipped

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
FOLDERS = ("regate", "harness", "recipes", "tests", "docs", "benchmarks", "examples", ".ci")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(path: Path, language: str) -> list[str]:
    return [body for kind, body in BLOCK.findall(path.read_text(encoding="utf-8")) if kind == language]


def harness_calls(path: Path) -> list[list[str]]:
    """Arguments of every `harness ...` in shell blocks and in inline code."""
    text = path.read_text(encoding="utf-8")
    shell = [line for block in blocks(path, "bash") for line in re.split(r"\n|&&|\|", block.replace("\\\n", " "))]
    inline = re.findall(r"`([^`\n]+)`", BLOCK.sub("", text))
    calls = []
    for line in (*shell, *inline):
        words = shlex.split(line, comments=True) if line.count('"') % 2 == 0 and line.count("'") % 2 == 0 else []
        if words and Path(words[0]).name == "harness":
            calls.append(words[1:])
    return calls


def test_the_documents_are_there() -> None:
    assert {"README.md", "CONTRIBUTING.md", "CHANGELOG.md"} <= {name_of(path) for path in DOCUMENTS}


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(path: Path) -> None:
    text = BLOCK.sub("", path.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:", target) and not target.startswith("#"):
            assert (path.parent / target.split("#")[0]).exists(), target


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_files_named_in_code_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for word in re.findall(r"[`\s(]([\w.-]+(?:/[\w.-]+)+/?)(?=[`\s),;:])", text):
        if word.split("/")[0] in FOLDERS:
            assert (ROOT / word.rstrip(".")).exists(), word


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_commands_exist_and_recipes_are_found(path: Path) -> None:
    group = typer.main.get_command(app)
    for words in harness_calls(path):
        command = group
        while words and hasattr(command, "commands"):
            if words[0].startswith("-"):
                break
            assert words[0] in command.commands, f"harness {' '.join(words)}"
            command, words = command.commands[words[0]], words[1:]
        for word in words:
            if word.endswith(".yaml") and not is_override(word) and word not in ("RECIPE.yaml", "mine.yaml"):
                name = word.removeprefix("recipes/").removesuffix(".yaml")
                assert name in shipped(RECIPE), word


def test_the_readme_has_exactly_two_set_up_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = dict(re.findall(r"<!-- command: (\w+) -->\n```bash\n(.*?)\n```", text, re.DOTALL))
    assert set(commands) == {"run", "test"}
    assert not any("\n" in command for command in commands.values()), "each of them is one command"
    assert len(blocks(ROOT / "README.md", "bash")) >= 2
    assert [call for call in harness_calls(ROOT / "README.md") if call[:1] == ["run"]]


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_nothing_is_left_to_be_filled_in(path: Path) -> None:
    assert not re.search(r"^[A-Z]{4,}$|\b(TODO|TBD|FIXME)\b", path.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_python_blocks_compile_and_name_what_regate_has(path: Path) -> None:
    for block in blocks(path, "python"):
        compile(block, name_of(path), "exec")
        for name in set(re.findall(r"\bregate\.([A-Za-z_]\w*)", block)):
            assert name in regate.__all__ or (ROOT / "regate" / f"{name}.py").exists(), f"regate.{name}"


def test_the_laws_are_twelve() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.split("## The laws")[1].split("\n## ")[0]
    assert [int(number) for number in re.findall(r"^(\d+)\. \*\*", section, re.MULTILINE)] == list(range(1, 13))
