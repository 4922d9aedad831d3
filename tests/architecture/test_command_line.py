"""The command line is frozen: a verb, an argument or an option changes only together with command_line.txt.

python -m tests.architecture.test_command_line > tests/architecture/command_line.txt
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer.main

from harness.cli.main import app
from harness.config.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Iterator

FROZEN = Path(__file__).with_name("command_line.txt")


def commands(group: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{prefix} {name}")
        else:
            yield f"{prefix} {name}", command


def described() -> str:
    group = typer.main.get_command(app)
    lines = [_line("harness", group)]
    lines += [_line(name, command) for name, command in commands(group, "harness")]
    return "\n".join(lines) + "\n"


def _line(name: str, command: Any) -> str:
    words = [name]
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            text = (parameter.metavar or parameter.name.upper()) + ("..." if parameter.nargs == -1 else "")
            words.append(text if parameter.required else f"[{text}]")
        else:
            words.append(f"[{'/'.join(parameter.opts)}]")
    return " ".join(words)


def test_the_command_line_is_the_frozen_one() -> None:
    assert described() == FROZEN.read_text()


def test_no_option_repeats_a_recipe_key() -> None:
    keys: set[str] = set()

    def collect(schema: dict[str, Any]) -> None:
        keys.update(schema.get("properties", {}))
        for inner in schema.get("$defs", {}).values():
            collect(inner)

    collect(Recipe.model_json_schema())
    options = {
        option.lstrip("-").replace("-", "_")
        for _, command in commands(typer.main.get_command(app), "harness")
        for parameter in command.params
        if parameter.param_type_name == "option"
        for option in parameter.opts
    }
    assert len(keys) > 50
    assert not options & keys


if __name__ == "__main__":
    sys.stdout.write(described())
