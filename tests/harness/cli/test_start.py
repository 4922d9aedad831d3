"""A recipe of one's own, the schema of documents, and the end of each verb's help."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from typer.testing import CliRunner

from harness.cli.main import app
from harness.cli.start import KINDS, MARK, SCHEMAS, copy_recipe, schema_of
from harness.common.errors import RecipeError
from harness.config.load import kind_of, load_recipe, recipe_folder, shipped
from tests.architecture.test_command_line import commands

SHIPPED = [(kind, name, path) for kind in KINDS.values() for name, path in shipped(kind).items()]
VERBS = dict(commands(typer.main.get_command(app), "harness"))


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_copy_has_all_comments_and_is_another_file_of_the_same_run() -> None:
    lines = copy_recipe("tiny_regate", None)
    assert lines == [
        "tiny_regate.yaml is a copy of tiny_regate",
        "  harness plan ./tiny_regate.yaml",
        "  harness doctor ./tiny_regate.yaml",
        "  harness run ./tiny_regate.yaml",
    ]
    files = Path("tiny_regate.yaml"), shipped(KINDS["recipe"])["tiny_regate"]
    copied, original = (path.read_text().splitlines() for path in files)
    assert copied[1:] == original[1:]
    assert Path(copied[0].removeprefix(MARK)).is_file(), "an editor finds the schema from anywhere"
    assert load_recipe(Path("tiny_regate.yaml")).run_id == load_recipe("tiny_regate").run_id


def test_nothing_is_overwritten() -> None:
    Path("mine.yaml").write_text("mine")
    for _ in range(2):
        with pytest.raises(RecipeError, match=r"mine\.yaml: is there already"):
            copy_recipe("tiny_regate", "mine.yaml")
    assert Path("mine.yaml").read_text() == "mine"
    result = CliRunner().invoke(app, ["init", "tiny_regate", "mine.yaml"])
    assert result.exit_code == 2
    with pytest.raises(RecipeError, match="did you mean tiny_regate"):
        copy_recipe("tiny_regat", None)
    with pytest.raises(RecipeError, match="no such folder"):
        copy_recipe("tiny_regate", "absent/mine.yaml")


@pytest.mark.parametrize(("kind", "name", "path"), SHIPPED, ids=[name for _, name, _ in SHIPPED])
def test_every_shipped_document_is_copied_and_names_its_schema(kind: Any, name: str, path: Path) -> None:
    first = path.read_text().splitlines()[0]
    assert first.startswith(MARK)
    assert (path.parent / first.removeprefix(MARK)).resolve() == recipe_folder() / SCHEMAS / f"{kind.name}.json"
    copy_recipe(name, "copy.yaml")
    assert kind_of(Path("copy.yaml")) is kind


@pytest.mark.parametrize("kind", KINDS)
def test_the_committed_schema_is_that_of_the_code(kind: str) -> None:
    """`harness schema KIND > recipes/schema/KIND.json` makes it again."""
    assert json.loads((recipe_folder() / SCHEMAS / f"{kind}.json").read_text()) == schema_of(kind)


def test_an_unknown_kind_of_schema() -> None:
    result = CliRunner().invoke(app, ["schema", "recipes"])
    assert result.exit_code == 2
    assert "did you mean recipe" in result.stderr


def unknown_keys(data: Any, schema: Any, whole: Any, where: str = "") -> list[str]:
    """Keys of a document that its schema does not know, and values outside of a closed list."""
    while "$ref" in schema:
        schema = whole["$defs"][schema["$ref"].rpartition("/")[2]]
    choices = schema.get("anyOf") or schema.get("oneOf")
    if choices:
        return min((unknown_keys(data, choice, whole, where) for choice in choices), key=len)
    if "enum" in schema and data not in schema["enum"]:
        return [f"{where}: {data}"]
    if "const" in schema and data != schema["const"]:
        return [f"{where}: {data}"]
    if schema.get("type") == "null" and data is not None:
        return [f"{where}: {data}"]
    if isinstance(data, dict) and schema.get("type") == "object":
        known, more = schema.get("properties", {}), schema.get("additionalProperties", True)
        found = [f"{where}.{key}" for key in data if key not in known and more is False]
        found += [f"{where}.{key} is wanted" for key in schema.get("required", ()) if key not in data]
        for key, value in data.items():
            if key in known:
                found += unknown_keys(value, known[key], whole, f"{where}.{key}")
        return found
    if isinstance(data, dict) != (schema.get("type") == "object"):
        return [f"{where}: {data}"]
    return []


@pytest.mark.parametrize(("kind", "name", "path"), SHIPPED, ids=[name for _, name, _ in SHIPPED])
def test_the_shipped_documents_fit_the_schema(kind: Any, name: str, path: Path) -> None:
    schema, data = schema_of(kind.name), yaml.safe_load(path.read_text())
    assert unknown_keys(data, schema, schema) == []
    assert unknown_keys({**data, "nmae": 1}, schema, schema) == [".nmae"]


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_every_verb_ends_with_examples(verb: str) -> None:
    result = CliRunner().invoke(app, [*verb.split()[1:], "-h"])
    assert result.exit_code == 0
    examples = result.stdout.split("Examples:\n")[1].strip().splitlines()
    for example in examples:
        words = shlex.split(example.split(">")[0])
        assert " ".join(words[: len(verb.split())]) == verb
        names = {name for _, name, _ in SHIPPED}
        for word in words[len(verb.split()) :]:
            if word.partition("_")[0] in ("tiny", "videollama2", "videochat2") and not word.endswith("-1a2b"):
                assert word in names, example


def test_completion_names_the_shipped_documents() -> None:
    words = {"_HARNESS_COMPLETE": "complete_bash", "COMP_WORDS": "harness run tiny_smoke", "COMP_CWORD": "2"}
    result = CliRunner().invoke(app, [], prog_name="harness", env=words)
    assert result.stdout.split() == ["tiny_smoke_baseline", "tiny_smoke_regate"]
