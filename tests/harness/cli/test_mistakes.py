"""A user's mistakes, by verb: each ends with the code that `harness -h` tells, with one message and no answer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness.cli.arguments import require_folders
from harness.common.errors import EnvironmentProblem
from harness.config.load import load_recipe
from tests.harness.worlds import run_builder

if TYPE_CHECKING:
    from tests.harness.cli.command import Command

SMOKE = "tiny_smoke_regate"
LONG = "x" * 300


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished pair, and the files and folders that are given by mistake."""
    folder = tmp_path_factory.mktemp("a world")
    run_builder.build_pair(folder / "results")
    (folder / "folder.yaml").mkdir()
    (folder / "nothing here").mkdir()
    (folder / "file").write_text("x")
    (folder / "empty.yaml").write_text("")
    (folder / "latin.yaml").write_bytes("name: caf\xe9\n".encode("latin-1"))
    (folder / "binary.yaml").write_bytes(b"\x00\x01\x02")
    (folder / "list.yaml").write_text("- a\n")
    (folder / "dangling.yaml").symlink_to("nowhere")
    os.mkfifo(folder / "pipe.yaml")
    _with_a_pipe(folder / "piped")
    (folder / "my recipe.yaml").write_text(run_builder.recipe(folder / "results", "mine").model_dump_json())
    return folder


def _with_a_pipe(results: Path) -> None:
    """A finished pair, with a named pipe in the place of a record."""
    run_builder.build_pair(results)
    (record,) = results.glob("runs/demo_regate-*/record.json")
    record.unlink()
    os.mkfifo(record)


@pytest.fixture(autouse=True)
def _here(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world)


DOCUMENTS = {
    "nothing.yaml": "nothing.yaml: no such file",
    "tiny_regat": "did you mean tiny_regate?",
    "folder.yaml": "folder.yaml is a folder, not a recipe",
    "empty.yaml": "empty.yaml:1:1: the file is empty",
    "latin.yaml": "latin.yaml:1:10: not UTF-8",
    "binary.yaml": "binary.yaml:1:1: character 0",
    "list.yaml": "list.yaml:1:1: a recipe is a mapping",
    "file": "file:1:1: a recipe is a mapping",
    "dangling.yaml": "dangling.yaml: no such file",
    "pipe.yaml": "pipe.yaml is a named pipe, not a file",
    "/dev/null": "/dev/null is a device, not a file",
    "evaluate/videollama2_official": "is an evaluation, not a recipe\n  harness eval evaluate/",
    LONG: "neither a file nor a shipped recipe",
    "": "an argument is empty",
}
READERS = ["run", "plan", "data make"]
"""One verb of each way to the recipes: for work, for reading, for data."""


@pytest.mark.parametrize("verb", READERS)
@pytest.mark.parametrize("document", DOCUMENTS)
def test_a_document_that_is_none(harness: Command, verb: str, document: str) -> None:
    assert harness(*verb.split(), document) == 2
    assert DOCUMENTS[document] in harness.err
    assert harness.out == ""


MISTAKES: list[tuple[int, str, list[str]]] = [
    # A run, or what it holds.
    (2, "nobody: no recipe and no run below", ["show", "nobody"]),
    (2, f"{LONG}: no recipe and no run below", ["show", LONG]),
    (2, "beginning of several runs", ["show", "demo_"]),
    (2, "so gate means nothing to it", ["show", "demo_regate", "gate.keep_ratio=0.25"]),
    (2, "no item nothing; items are", ["show", "demo_regate", "nothing"]),
    (2, "so seed means nothing to it", ["show", "demo_regate", "colour-0000", "seed=1"]),
    (2, "no finished run below", ["show", "nobody", "colour-0000"]),
    (2, "b is one too many", ["show", "demo_regate", "a", "b"]),
    (2, "an argument is empty", ["show", "demo_regate", ""]),
    (5, "the questions of shapes are not kept", ["show", "demo_regate", "colour-0000"]),
    (2, "no table pair; did you mean pairs?", ["trace", "pair", "1", "arm"]),
    (2, "99 is no row of pairs", ["trace", "pairs", "99", "arm"]),
    (2, "nobody is no row of pairs", ["trace", "pairs", "nobody", "arm"]),
    (2, "arms is no column of pairs; did you mean arm?", ["trace", "pairs", "1", "arms"]),
    (2, "an argument is empty", ["trace", "pairs", "1", ""]),
    (2, "an argument is empty", ["trace", "accuracy_shapes", "1", "mean", "--item", ""]),
    (2, "no item nothing; items are", ["trace", "accuracy_shapes", "1", "mean", "--item", "nothing"]),
    (2, "compare takes two runs or more", ["compare", "demo_regate"]),
    (2, "is named twice", ["compare", "demo_regate", "demo_regate"]),
    (2, "no run below results/runs, no suite and no recipe", ["compare", "demo_regate", "nobody"]),
    (4, "harness run 'my recipe.yaml'", ["compare", "demo_regate", "my recipe.yaml"]),
    (4, "harness eval evaluate/videollama2_official", ["report", "evaluate/videollama2_official"]),
    (4, "no finished run of suite tiny_claim", ["figures", "suites/tiny_claim"]),
    (2, "there is no such arm", ["figures", "--draw", "nothing"]),
    (2, "there is no such kind; did you mean runs?", ["list", "run"]),
    (2, "there is no such kind of document", ["schema", "recipes"]),
    (2, "did you mean tiny_regate?", ["init", "tiny_regat"]),
    # What is neither a file nor a folder.
    (2, "pipe.yaml is a named pipe, not a file", ["show", "pipe.yaml"]),
    (2, "/dev/null is a device, not a file", ["show", "/dev/null"]),
    (2, "pipe.yaml is a named pipe, not a file", ["tables", "pipe.yaml"]),
    (2, "paths.results: pipe.yaml is a named pipe, not a folder", ["tables", "paths.results=pipe.yaml"]),
    (2, "paths.results: /dev/null is a device, not a folder", ["show", "demo_regate", "paths.results=/dev/null"]),
    (4, "record.json: a named pipe, not a file", ["show", "demo_regate", "paths.results=piped"]),
    (4, "record.json: a named pipe, not a file", ["tables", "--check", "paths.results=piped"]),
    # Where to read and where to write.
    *[
        (2, "paths.results: file is a file, not a folder", [*verb, "paths.results=file"])
        for verb in (
            ["status"], ["tables"], ["figures"], ["report"], ["sync"], ["list", "runs"], ["show", "demo_regate"],
            ["compare", "demo_baseline", "demo_regate"], ["trace", "pairs", "1", "arm"],
        )
    ],
    *[(4, "no finished run below", [verb, "paths.results=nothing here"]) for verb in ("tables", "figures", "report")],
    (3, "file is a file, not a folder", ["run", SMOKE, "paths.results=file"]),
    (3, "file is a file, not a folder", ["prepare", SMOKE, "paths.weights=file/below"]),
    (3, "file is a file, not a folder", ["train", SMOKE, "paths.stores=file"]),
    (3, "/dev/null is a device, not a folder", ["data", "make", SMOKE, "paths.data=/dev/null"]),
    (3, "dangling.yaml is a link to nothing", ["reference", SMOKE, "paths.stores=dangling.yaml"]),
    (2, "file: no such folder", ["init", SMOKE, "file/mine.yaml"]),
    (2, "folder.yaml: is there already", ["init", SMOKE, "folder.yaml"]),
    (2, "dangling.yaml: is there already", ["init", SMOKE, "dangling.yaml"]),
    (2, "an argument is empty", ["init", SMOKE, ""]),
    # Values of the wrong type, names of nothing, files of one's own.
    (2, "seed wants a whole number", ["eval", SMOKE, "seed=1.5"]),
    (2, "limit wants a whole number", ["eval", "evaluate/videollama2_official", "limit=many"]),
    (2, "unknown key nothing", ["validate", SMOKE, f"nothing={'1' * 300}"]),
    (2, "unknown benchmark mvbenhc; did you mean mvbench", ["validate", SMOKE, "evaluate.benchmarks=[mvbenhc]"]),
    (2, "cannot be read: No such file", ["validate", SMOKE, "evaluate.benchmarks=[{file: nothing.json}]"]),
    (2, "cannot be read: Is a directory", ["validate", SMOKE, "evaluate.benchmarks=[{file: folder.yaml}]"]),
    (2, "is not JSON", ["validate", SMOKE, "evaluate.benchmarks=[{file: latin.yaml}]"]),
    (2, "nothing.py cannot be read", ["doctor", SMOKE, "gate.selection={file: nothing.py, function: score}"]),
    (2, "so seed means nothing to it", ["sync", "seed=1"]),
    (2, "one recipe and one sample", ["data", "show", SMOKE, "1", "2"]),
    (4, "data are missing", ["data", "check", SMOKE]),
    (4, "data are missing", ["data", "show", SMOKE]),
    (4, "come from", ["data", "make", "videollama2_regate"]),
    (3, "weights are missing", ["eval", "evaluate/videollama2_official"]),
    (3, "weights and data are missing", ["run", "videollama2_regate"]),
    (2, "Missing argument", ["compare"]),
    (2, "No such option", ["status", "--jsn"]),
]  # fmt: skip


@pytest.mark.parametrize(("code", "words", "arguments"), MISTAKES)
def test_a_mistake_of_a_user(harness: Command, world: Path, code: int, words: str, arguments: list[str]) -> None:
    before = sorted(world.rglob("*"))
    assert harness(*arguments) == code, harness.err
    assert words in harness.err
    assert harness.out == ""
    assert sorted(world.rglob("*")) == before, "nothing is begun"


def test_every_verb_is_tried() -> None:
    listed = (Path(__file__).parents[2] / "architecture" / "command_line.txt").read_text().splitlines()
    verbs = {" ".join(words[1 : 3 if words[1] == "data" else 2]) for words in map(str.split, listed[1:])}
    tried = {" ".join(call[: 2 if call[0] == "data" else 1]) for _, _, call in MISTAKES}
    assert verbs <= tried | set(READERS)


@pytest.mark.parametrize("key", ["data", "weights", "stores", "results"])
def test_a_folder_that_may_not_be_written_is_told_before_anything_is_computed(
    world: Path, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(SMOKE, [f"paths.{key}=nothing here/below"])
    require_folders([recipe])
    # Root may write everywhere: the answer of the system is what another user gets.
    monkeypatch.setattr(os, "access", lambda place, mode: Path(place).name != "nothing here")
    with pytest.raises(EnvironmentProblem, match=f"paths.{key}: .*nothing here cannot be written"):
        require_folders([recipe])
