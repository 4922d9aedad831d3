"""What `harness eval RUN` takes of a run that is trained, and what it refuses; and that `plan` tells of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from harness.cli.more_evaluations import asked_more, trainings_apart
from harness.common.errors import RecipeError
from harness.plan.same_training import same_training
from tests.harness.worlds import run_builder

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = run_builder.recipe(tmp_path_factory.mktemp("asked"), "demo")
    return run_builder.build_run(made)


def test_a_run_is_named_by_its_id_beside_overrides(run_dir: Path) -> None:
    overrides = [f"paths.results={run_dir.parent.parent}", "evaluate.benchmarks=[mvbench]"]
    assert trainings_apart([run_dir.name[:6], *overrides]) == ([run_dir], overrides)
    assert trainings_apart(["tiny_regate", *overrides]) == ([], ["tiny_regate", *overrides])
    with pytest.raises(RecipeError, match="beside tiny_regate: overrides of a run that is there are not those"):
        trainings_apart([run_dir.name, "tiny_regate", *overrides])
    with pytest.raises(RecipeError, match=r"demo-ffffffff: no run below .*demo-"):
        trainings_apart(["demo-ffffffff", *overrides])


def test_other_benchmarks_leave_the_run_what_it_is(run_dir: Path) -> None:
    overrides = ["evaluate.benchmarks=[mvbench]", "evaluate.limit=3", "devices.processes=1", "paths.data=elsewhere"]
    recipe, asked = asked_more(run_dir, overrides)
    assert recipe.run_id == run_dir.name
    assert (recipe.evaluate.names, asked.evaluate.names) == (("shapes",), ("mvbench",))
    assert (asked.evaluate.limit, asked.evaluate.at) == (3, recipe.evaluate.at)
    assert recipe.paths.data == asked.paths.data == "elsewhere"
    assert recipe.paths.results == str(run_dir.parent.parent)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.steps=5"], "train.steps: demo-.* is trained, so that this cannot be another"),
        (["evaluate.at=[0.5]"], "evaluate.at: demo-.* is trained"),
        (["evaluate.limit=3"], "shapes: the run's own recipe asks it, and evaluate.limit would replace its answers"),
        (["evaluate.benchmarks=[mvbensh]"], "unknown benchmark mvbensh; did you mean mvbench?"),
    ],
)
def test_what_would_make_another_run_is_refused(run_dir: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        asked_more(run_dir, overrides)


def test_a_recipe_that_asks_more_is_told_of_the_training_that_is_there(run_dir: Path) -> None:
    results = run_dir.parent.parent
    asked = {"benchmarks": ["shapes", "mvbench"], "at": [0.5, 1.0]}
    (sentence,) = same_training(run_builder.recipe(results, "demo", evaluate=asked))
    assert sentence.startswith(f"{run_dir.name} is the same training, asked otherwise: `harness eval {run_dir.name} ")
    others = (
        run_builder.recipe(results, "demo"),  # is there itself
        run_builder.recipe(results, "demo", seed=1, evaluate=asked),
        run_builder.recipe(results, "demo", evaluate={**asked, "at": [1.0]}),
        run_builder.recipe(results, "other", evaluate=asked),
    )
    assert [list(same_training(recipe)) for recipe in others] == [[]] * 4
