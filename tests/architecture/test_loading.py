"""No load runs code that a folder of weights brings, or that a pickle holds."""

from __future__ import annotations

import ast
import functools

from .tree import nodes

CLASSES_BY_NAME = ("Auto", "PreTrainedTokenizerFast")
"""What transformers chooses by a file of the folder, which may name code of its own."""


def _argument(call: ast.Call, name: str) -> object:
    values = [keyword.value for keyword in call.keywords if keyword.arg == name]
    return values[0].value if values and isinstance(values[0], ast.Constant) else None


@functools.cache
def _calls() -> list[tuple[str, str, str, ast.Call]]:
    """(place, owner, method, call) of each call of a method of something with a name."""
    calls = []
    for file, node in nodes("regate", "harness", "benchmarks", "examples"):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = node.func.value
            name = owner.attr if isinstance(owner, ast.Attribute) else owner.id if isinstance(owner, ast.Name) else ""
            calls.append((f"{file}:{node.lineno}", name, node.func.attr, node))
    return calls


def test_remote_code_is_refused_at_every_load() -> None:
    loads = [
        (place, call)
        for place, owner, method, call in _calls()
        if owner.startswith(CLASSES_BY_NAME) and method in ("from_pretrained", "from_config")
    ]
    assert len(loads) > 15, "they are found at all"
    assert not [place for place, call in loads if _argument(call, "trust_remote_code") is not False]


def test_nothing_is_unpickled_freely() -> None:
    calls = _calls()
    loads = [(place, call) for place, owner, method, call in calls if (owner, method) == ("torch", "load")]
    assert loads
    assert not [place for place, call in loads if _argument(call, "weights_only") is not True]
    assert not [place for place, owner, method, _ in calls if owner == "pickle" and method in ("load", "loads")]
