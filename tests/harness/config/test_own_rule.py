"""`gate.selection: {file: ..., function: ...}`: what a recipe says of a rule of its user's own."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from harness.analysis.runs import Run
from harness.config.load import RECIPE, check, load_recipe
from harness.config.recipe import Recipe
from harness.plan import make_plan

if TYPE_CHECKING:
    from pathlib import Path

RULE = "def score(loss_BS, reference_BS):\n    return loss_BS * reference_BS\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_rule.py").write_text(RULE)
    return tmp_path


def own(value: str = "{file: my_rule.py, function: score}") -> Recipe:
    return load_recipe("tiny_smoke_regate", [f"gate.selection={value}"])


def test_the_content_of_the_file_makes_the_run_and_its_folder_does_not(folder: Path) -> None:
    first = own()
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / "my_rule.py").write_text(RULE)
    assert own("{file: elsewhere/my_rule.py, function: score}").run_id == first.run_id
    assert first.run_id != load_recipe("tiny_smoke_regate").run_id
    (folder / "my_rule.py").write_text(RULE + "# another\n")
    assert own().run_id != first.run_id


def test_what_a_run_needs_follows_from_the_functions_parameters(folder: Path) -> None:
    recipe = own()
    assert recipe.gate is not None
    assert recipe.gate.needs_reference
    assert recipe.gate.needs_difficulty
    assert make_plan(recipe).teacher_pass
    (folder / "my_rule.py").write_text("def score(random_BS):\n    return random_BS\n")
    assert not make_plan(own()).teacher_pass


def test_a_recipe_that_was_written_down_asks_for_the_same_file(folder: Path) -> None:
    written = json.dumps(own().model_dump(mode="json"))
    assert Recipe.model_validate_json(written) == own()
    (folder / "my_rule.py").write_text("def score(loss_BS):\n    return loss_BS\n")
    with pytest.raises(ValueError, match=r"my_rule.py is not the one that these settings were made with"):
        Recipe.model_validate_json(written)


def test_the_arm_of_such_a_run_is_named_by_function_and_file(folder: Path) -> None:
    record = {"totals": {}, "recipe": own().identity()}
    assert Run(record, folder).arm == "score of my_rule.py"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{file: rule.py, function: score}", "gate.selection.file rule.py cannot be read: No such file"),
        ("{file: my_rule.py, function: scor}", "gate.selection.function scor is not in my_rule.py; it defines score"),
        ("{file: my_rule.py}", "gate.selection.function is missing"),
        ("{file: my_rule.py, fnction: score, function: score}", "unknown key fnction under gate.selection; did you"),
        ("{file: 3, function: score}", "gate.selection.file wants a text, got 3"),
        ("3", "gate.selection is 3, not one of regate, reference"),
        ("my_rule.py", 'gate.selection is "my_rule.py", not one of regate, reference'),
    ],
)
def test_a_mistake_is_one_message_at_its_place(folder: Path, value: str, message: str) -> None:
    (problem,) = check(RECIPE, "tiny_smoke_regate", [f"gate.selection={value}"]).problems
    assert problem.message.startswith(message)
    assert problem.path[:2] == ("gate", "selection")


def test_other_mistakes_of_the_gate_are_told_beside_it(folder: Path) -> None:
    text: Any = ["gate.selection={file: rule.py, function: score}", "gate.keep_ratio=2", "gate.align=left"]
    messages = [problem.message for problem in check(RECIPE, "tiny_smoke_regate", text).problems]
    assert len(messages) == 3
    assert any("keep_ratio must be in" in message for message in messages)
