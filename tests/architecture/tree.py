"""The repository's own files, for the tests that look at them."""

from __future__ import annotations

import ast
import functools
import subprocess
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
_FOLDERS = (".ci", "benchmarks", "docs", "examples", "harness", "recipes", "regate", "results", "tests")
_LEFT_OUT = frozenset({"__pycache__", "checkpoints", "difficulty"})


@functools.cache
def tracked() -> list[Path]:
    """Files under version control; in an unpacked archive, those of the project's folders."""
    if (ROOT / ".git").exists():
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
        paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    else:
        paths = [path for path in ROOT.iterdir() if path.is_file()]
        paths += [path for folder in _FOLDERS for path in (ROOT / folder).rglob("*")]
    return [path for path in paths if path.is_file() and not _LEFT_OUT.intersection(path.parts)]


def sources(*folders: str) -> list[Path]:
    """Python files below the given folders."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def nodes(*folders: str) -> Iterator[tuple[str, ast.AST]]:
    """(file below the root, node) of every node of the sources."""
    return chain.from_iterable(map(_nodes_below, folders))


@functools.cache
def _nodes_below(folder: str) -> tuple[tuple[str, ast.AST], ...]:
    """Walked once for all tests that look at them."""
    return tuple(
        (path.relative_to(ROOT).as_posix(), node) for path in sources(folder) for node in ast.walk(tree_of(path))
    )
