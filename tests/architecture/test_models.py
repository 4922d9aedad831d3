"""Model families: each a folder with the same files, and no circle among what they import."""

from __future__ import annotations

import ast
import importlib
from typing import TYPE_CHECKING

import pytest

from harness.models import MODELS

from .tree import ROOT, sources, tree_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OF_ALL = {"__init__", "adapter", "config", "flops", "model", "processor", "sizes"}
OF_PUBLISHED = {"hf_processor", "image_processing", "official", "toy", "weights"}
"""Of a family whose weights the user gives."""
FOLDERS = sorted(path for path in (ROOT / "harness" / "models").iterdir() if (path / "__init__.py").is_file())


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_a_family_has_the_same_files_as_the_others(folder: Path) -> None:
    family = importlib.import_module(f"harness.models.{folder.name}").FAMILY
    assert family in MODELS.values()
    wanted = OF_ALL | (OF_PUBLISHED if family.official else set())
    assert wanted <= {path.stem for path in folder.glob("*.py")}


def test_no_circle_among_the_models() -> None:
    modules = {name_of(path): path for path in sources("harness/models")}
    graph = {name: {other for other in imported(path) if other in modules} for name, path in modules.items()}
    while free := [name for name, others in graph.items() if not others & graph.keys()]:
        for name in free:
            del graph[name]
    assert not graph, "these modules import each other"


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path) -> Iterator[str]:
    """What a module imports when it is itself imported."""
    for node in tree_of(path).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                inner = ROOT.joinpath(*node.module.split("."), alias.name)
                is_module = inner.is_dir() or inner.with_suffix(".py").is_file()
                yield f"{node.module}.{alias.name}" if is_module else node.module
