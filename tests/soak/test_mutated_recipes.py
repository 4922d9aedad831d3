"""Recipes with an odd value somewhere: planned, or refused in one message with its exit code; never a traceback, and
never long."""

from __future__ import annotations

import copy
import random
import time
from typing import TYPE_CHECKING, Any

import yaml

from harness.common.exits import explained
from harness.config.load import load_recipe
from harness.plan import Planner, render
from tests.smoke.conftest import PAIR

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pytest

MOST_S = 60.0
ODD: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 7, 10**12, 2**63, 10**30, 0.5, -0.0, 1e-300, 1e308, float("nan"), float("inf")),
    *("", " ", "x" * 10_000, "\0", "../..", "/", "~", "\ud800", "null", "1e3", "٣", "=1", "a\nb", "é" * 300),
    *([], [[]], [None], {}, {"": 1}, {"file": "absent.py", "function": "f"}, [1] * 1000, {"a": {"b": {"c": []}}}),
)


def places(value: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every key of nested mappings."""
    if not isinstance(value, dict):
        return [path]
    return [path] * bool(path) + [place for key, item in value.items() for place in places(item, (*path, key))]


def mutated(recipe: dict[str, Any], rng: random.Random) -> tuple[str, dict[str, Any]]:
    """One to three keys with an odd value, gone, or with a neighbour that is not known."""
    changed, words = copy.deepcopy(recipe), []
    for _ in range(rng.randint(1, 3)):
        *above, key = rng.choice(places(changed))
        owner = changed
        for name in above:
            owner = owner[name]
        match rng.randrange(6):
            case 0:
                owner.pop(key)
                words.append(f"without {key}")
            case 1:
                owner[f"{key}_"] = 1
                words.append(f"with {key}_")
            case _:
                owner[key] = rng.choice(ODD)
                words.append(f"{key}={str(owner[key])[:40]!r}")
    return ", ".join(words), changed


def answered(path: Path, overrides: list[str]) -> str | None:
    failure = judged(path, overrides)
    return failure and f"{overrides}: {failure}"


def judged(path: Path, overrides: Sequence[str] = ()) -> str | None:
    """What is wrong with how a recipe file is answered; None where it is planned or refused in one message."""
    began = time.monotonic()
    try:
        recipe, planner = load_recipe(path, overrides), Planner()
        render(planner.plan(recipe), planner.costs(recipe))
    except Exception as error:  # noqa: BLE001 - whatever comes is judged
        message, code = explained(error)
        if code not in (2, 3, 4) or "Traceback" in message:
            return f"exit {code}: {message[-800:]}"
    took = time.monotonic() - began
    return f"took {took:.0f} s" if took > MOST_S else None


def test_mutated_recipes(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rng, failures = random.Random(0), []
    recipe = yaml.safe_load(PAIR[1].read_text())
    count = 300 if request.config.getoption("--soak") else 40
    for number in range(count):
        words, changed = mutated(recipe, rng)
        path = tmp_path / "mutated.yaml"
        path.write_bytes(yaml.safe_dump(changed, allow_unicode=True).encode("utf-8", "surrogatepass"))
        failure = judged(path)
        if failure is not None:
            failures.append(f"{number}: {words}: {failure}")
    assert not failures, "\n".join([f"{len(failures)} of {count}", *failures])


def test_a_million_million_of_anything_is_planned_or_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plain = load_recipe(PAIR[1]).model_dump(mode="json")
    plain["train"] |= {"epochs": 1.0}
    plain["devices"] |= {"processes": 1, "threads": 1}
    plain["evaluate"] |= {"limit": 1}
    numbers = [path for path in places(plain) if type(value_at(plain, path)) in (int, float)]
    assert len(numbers) > 40
    began, failures = time.process_time(), []
    for path in numbers:
        other = {"train.epochs": ["train.steps=null"]}.get(".".join(path), [])
        failures.append(answered(PAIR[1], [*other, f"{'.'.join(path)}={10**12}"]))
    assert not [failure for failure in failures if failure]
    assert time.process_time() - began < 0.5 * len(numbers)


def value_at(value: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def test_a_run_of_a_million_million_steps_is_planned_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    began, recipe = time.monotonic(), load_recipe(PAIR[1], ["train.steps=1000000000000"])
    plan = Planner().plan(recipe)
    assert plan.dense_steps + plan.sparse_steps == plan.steps == 10**12
    assert time.monotonic() - began < MOST_S
