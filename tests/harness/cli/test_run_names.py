"""What a name on the command line means: every kind of name, with the same answer for every verb."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from harness.cli.inspect import shown
from harness.cli.main import app
from harness.cli.run_names import resolve_runs, run_of_beginning, runs_to_compare
from harness.common.errors import DataError, RecipeError
from tests.harness.worlds import run_builder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pair, its ReGATE recipe as a file, a run whose id begins like another's, a suite, an unfinished run."""
    folder = tmp_path_factory.mktemp("names")
    results = folder / "results"
    run_builder.build_pair(results)
    recipe = run_builder.recipe(results, "demo_regate", gate=True)
    (folder / "demo.yaml").write_text(json.dumps(recipe.model_dump(mode="json")))
    for name in ("demo_regate_longer", "set.dense.seed0", "set.gated.seed0"):
        built = run_builder.recipe(results, name, gate="dense" not in name)
        record: dict[str, Any] = run_builder.finish(built, run_builder.build_run(built))
        if name.startswith("set."):
            record["suite"] = {"name": "set", "arm": name.split(".")[1]}
        (results / "runs" / built.run_id / "record.json").write_text(json.dumps(record))
    unfinished = run_builder.recipe(results, "half", gate=True)
    assert not (run_builder.build_run(unfinished) / "record.json").exists()
    return folder


def names_of(world: Path, *names: str) -> list[str]:
    return [run.name for run in resolve_runs([*names, f"paths.results={world / 'results'}"]).runs]


def test_a_run_is_named_by_its_id_its_beginning_its_name_a_recipe_or_a_suite(world: Path) -> None:
    (regate,) = [path.name for path in (world / "results" / "runs").glob("demo_regate-*")]
    assert names_of(world, regate) == ["demo_regate"]
    assert names_of(world, regate[:-2]) == ["demo_regate"]
    assert names_of(world, "demo_b") == ["demo_baseline"]
    assert names_of(world, "demo_regate") == ["demo_regate"], "a whole name goes before the beginning of another"
    assert names_of(world, str(world / "demo.yaml")) == ["demo_regate"]
    assert names_of(world, "set") == ["set.dense.seed0", "set.gated.seed0"]
    assert names_of(world, "set.d") == ["set.dense.seed0"]
    assert names_of(world, "demo_baseline", "set", regate) == [
        "demo_baseline",
        "set.dense.seed0",
        "set.gated.seed0",
        "demo_regate",
    ]


def test_without_a_name_there_are_all_finished_runs_and_none_is_named(world: Path) -> None:
    meant = resolve_runs([f"paths.results={world / 'results'}"])
    assert (len(meant.finished), meant.named, meant.runs) == (5, [], [])
    assert meant.paths.results == str(world / "results")


def test_the_folders_are_those_of_the_recipe_that_is_named(world: Path, tmp_path: Path) -> None:
    assert [run.name for run in resolve_runs([str(world / "demo.yaml")]).runs] == ["demo_regate"]
    other = f"paths.results={tmp_path}"
    with pytest.raises(DataError, match=r"its run demo_regate-.* has no record below"):
        resolve_runs([str(world / "demo.yaml"), other])
    with pytest.raises(RecipeError, match="different results folders"):
        resolve_runs([str(world / "demo.yaml"), "tiny_regate"])


@pytest.mark.parametrize(
    "answer",
    [
        resolve_runs,
        lambda arguments: runs_to_compare(["set.d", *arguments]),
        lambda arguments: shown(arguments[0], arguments[1:]),
    ],
    ids=["report", "compare", "show"],
)
def test_the_beginning_of_several_runs_is_an_error_for_every_verb(
    world: Path, answer: Callable[[list[str]], object]
) -> None:
    with pytest.raises(RecipeError, match="demo_ is the beginning of several runs: demo_baseline-") as caught:
        answer(["demo_", f"paths.results={world / 'results'}"])
    assert caught.value.hint == "write more of the id of one of them"


def test_a_recipe_without_runs_names_the_runs_of_other_settings(world: Path) -> None:
    at = f"paths.results={world / 'results'}"
    with pytest.raises(DataError, match=r"tiny_regate: its run tiny_regate-\w{8} has no record below") as caught:
        resolve_runs(["tiny_regate", at])
    assert caught.value.hint == "harness run tiny_regate"
    with pytest.raises(DataError, match="has no record below") as caught:
        resolve_runs([str(world / "demo.yaml"), "gate.keep_ratio=0.125"])
    assert re.search(r"; with other settings there are demo_regate-\w{8}$", str(caught.value.hint))


def test_what_has_no_finished_run_says_which(world: Path) -> None:
    at = f"paths.results={world / 'results'}"
    with pytest.raises(DataError, match=r"half-\w{8}: no record yet"):
        resolve_runs(["half", at])
    with pytest.raises(DataError, match="no finished run of suite tiny_claim"):
        resolve_runs(["suites/tiny_claim", at])
    with pytest.raises(RecipeError, match=r"demo_regat_: no run below .*, no suite and no recipe of that name"):
        resolve_runs(["demo_regat_", at])
    with pytest.raises(RecipeError, match=r"\(0, 1\], got 3"):
        resolve_runs(["tiny_regate", "gate.keep_ratio=3"])


def test_a_comparison_takes_two_runs_each_once(world: Path) -> None:
    at = f"paths.results={world / 'results'}"
    assert [run.name for run in runs_to_compare(["set", at])] == ["set.dense.seed0", "set.gated.seed0"]
    with pytest.raises(RecipeError, match="two runs or more"):
        runs_to_compare([at])
    with pytest.raises(RecipeError, match="two runs or more"):
        runs_to_compare(["demo_baseline", at])
    with pytest.raises(RecipeError, match=r"set\.dense\.seed0-\w{8} is named twice"):
        runs_to_compare(["set", "set.dense", at])


def test_a_beginning() -> None:
    ids = ["a-12", "a.b-34", "ab-56"]
    assert run_of_beginning("a-12", ids) == "a-12"
    assert run_of_beginning("a", ids) == "a-12"
    assert run_of_beginning("ab", ids) == "ab-56"
    assert run_of_beginning("c", ids) is None
    with pytest.raises(RecipeError, match=r"a is the beginning of several runs: a-12, a-34"):
        run_of_beginning("a", ["a-12", "a-34"])


DIGITS = {f"{first}{second}" for first in range(1, 10) for second in range(10)}


def damage(path: Path) -> None:
    """Another digit in a number."""
    content = path.read_text()
    places = range(len(content) // 2, len(content))
    place = next(place for place in places if content[place - 1 : place + 1] in DIGITS)
    path.write_text(content[:place] + str(9 - int(content[place])) + content[place + 1 :])


def test_a_damaged_run_is_named_and_the_tables_are_those_of_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results"
    run_builder.build_pair(results)
    run_builder.build_pair(results, "other")
    (bad,) = (results / "runs").glob("demo_regate-*")
    (lines,) = (results / "runs").glob("other_baseline-*")
    damage(bad / "record.json")
    damage(lines / "eval" / "step-000040" / "shapes.items.jsonl")
    for command in (["tables"], ["tables", "--json"]):
        done = CliRunner().invoke(app, [*command, f"paths.results={results}"])
        assert done.exit_code == 4
        assert "demo_baseline" in done.stdout
        assert "demo_regate" not in done.stdout
        for words in (str(bad / "record.json"), "checksum", str(lines), "make it again"):
            assert words in done.stderr
    left = resolve_runs([f"paths.results={results}"]).finished
    assert [run.name for run in left] == ["demo_baseline", "other_regate"]
    assert f"WARNING: left out, as files are damaged:\n  {bad}" in capsys.readouterr().err
    with pytest.raises(DataError, match=r"demo_regate.*checksum"):
        resolve_runs(["demo_regate", f"paths.results={results}"])


def test_records_of_an_earlier_version_are_read_and_said_to_have_no_checksum(tmp_path: Path) -> None:
    results = tmp_path / "results"
    run_builder.build_pair(results)
    place = [f"paths.results={results}"]
    assert "checksum" not in CliRunner().invoke(app, ["tables", *place]).stderr
    (path,) = (results / "runs").glob("demo_regate-*/record.json")
    record = json.loads(path.read_text())
    del record["seal"]
    path.write_text(json.dumps(record))
    for command in (["tables", "--check"], ["tables"]):
        done = CliRunner().invoke(app, [*command, *place])
        assert done.exit_code == 0
        assert "1 of 2 records" in done.stderr
        assert "without a checksum" in done.stderr
