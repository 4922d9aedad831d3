"""Loading recipes: all mistakes at once, each with its place and the way out."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from harness.benchmarks import PAPER_BENCHMARKS
from harness.common.errors import RecipeError
from harness.config.load import RECIPE, check, is_override, load_paths, load_recipe, load_recipes
from harness.config.recipe import ADDED_KEYS, Recipe

if TYPE_CHECKING:
    from pathlib import Path

GOOD = """\
name: mine
model: {adapter: tiny}
data: {source: shapes}
train:
  steps: 10
  global_batch: 8
  micro_batch: 4
  optimizer: {lr: 2e-3}
gate: {keep_ratio: 0.5}
evaluate: {benchmarks: [shapes]}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("recipe", ["tiny_regate", "videollama2_regate", "videochat2_regate"])
def test_the_papers_benchmarks_may_be_asked_of_every_model(recipe: str) -> None:
    names = ", ".join(PAPER_BENCHMARKS)
    assert load_recipe(recipe, [f"evaluate.benchmarks=[{names}]"]).evaluate.benchmarks == tuple(PAPER_BENCHMARKS)
    with pytest.raises(RecipeError, match="unknown benchmark video-mme; did you mean videomme"):
        load_recipe(recipe, ["evaluate.benchmarks=[video-mme]"])


def problems(folder: Path, text: str, *overrides: str) -> list[str]:
    (folder / "r.yaml").write_text(text)
    return [str(problem) for problem in check(RECIPE, "r.yaml", overrides).problems]


def test_a_good_recipe_loads_with_overrides(folder: Path) -> None:
    (folder / "r.yaml").write_text(GOOD)
    recipe = load_recipe("r.yaml", ["train.optimizer.lr=1e-4", "gate.keep_ratio=0.25", "evaluate.at=[0.5, 1.0]"])
    assert recipe.train.optimizer.lr == 1e-4
    assert recipe.gate is not None
    assert recipe.gate.keep_ratio == 0.25
    assert recipe.evaluate.at == (0.5, 1.0)
    assert load_recipe("r.yaml", ["paths.results=elsewhere"]).paths.results == "elsewhere"
    assert load_recipe("r.yaml", ["gate=null"]).gate is None


@pytest.mark.parametrize(
    ("change", "place", "words"),
    [
        (("steps: 10", "steps: many"), "5:10", 'train.steps wants a whole number, got "many"'),
        (("steps: 10", "steps: 1e1"), "5:10", "write 10"),
        (("steps: 10", "steps: 1_0"), "5:10", "write 10"),
        (("steps: 10", "steps: '10'"), "5:10", "take the quotes off"),
        (("steps: 10", "steps: 0"), "5:10", "train.steps must be more than 0, got 0"),
        (("steps: 10", "steps: 10\n  epochs: 1"), "6:11", "both given"),
        (("  steps: 10\n", ""), "4:", "neither steps nor epochs"),
        (("lr: 2e-3", "lr: 2e-3x"), "8:19", "wants a number"),
        (("lr: 2e-3", "lr: -1"), "8:19", "more than 0"),
        (("lr: 2e-3", "lr: 2e-3, betas: [0.9]"), "8:32", "at least 2 values"),
        (("lr: 2e-3", "lr: 2e-3, betas: [0.9, 1]"), "8:38", "less than 1"),
        (("micro_batch: 4", "micro_batch: 3"), "7:16", "does not divide"),
        (("micro_batch: 4", "micro_batchs: 4"), "7:3", "did you mean micro_batch?"),
        (("micro_batch: 4", "micro_batch: 4\n  micro_batch: 8"), "8:3", "given twice"),
        (("micro_batch: 4", "micro_batch: 4\n  gradient_checkpointing: yes"), "8:27", "write true"),
        (("micro_batch: 4", "micro_batch: 4\n  keep_ratio: 0.5"), "8:3", "it belongs under gate"),
        (("micro_batch: 4", "micro_batch:\t4"), "7:15", "tab"),
        (("adapter: tiny", "adapter: tyni"), "2:18", "did you mean tiny?"),
        (("adapter: tiny", "layers: 2"), "2:1", "model.adapter is missing"),
        (("adapter: tiny", "adapter: tiny, hiden: 64"), "2:24", "did you mean hidden?"),
        (("adapter: tiny", "adapter: tiny, heads: 3"), "2:31", "does not divide model.hidden"),
        (("adapter: tiny", "adapter: tiny, frames_a_token: 3"), "2:40", "data.frames 8 is no multiple of 3"),
        (("adapter: tiny", "adapter: tiny, cells_a_token: 3"), "2:39", "data.size 64 is no multiple of 48"),
        (("source: shapes", "source: shapes, damaged: off"), "3:33", "not one of refuse, exclude"),
        (("source: shapes", "source: llava, annotations: [a], media: m"), "2:18", "tiny is made from"),
        (("keep_ratio: 0.5", "keep_ratio: 1.5"), "9:20", "gate.keep_ratio must be in (0, 1], got 1.5"),
        (("keep_ratio: 0.5", "cycle_steps: 8"), "9:1", "gate.dense_steps must be"),
        (("keep_ratio: 0.5", "align: predicter"), "9:15", "did you mean predictor?"),
        (("keep_ratio: 0.5", "reference: {tokens_per_batch: 0}"), "9:38", "at least 1"),
        (("gate: {keep_ratio: 0.5}\n", ""), "1:1", "gate: null"),
        (("[shapes]", "[shape]"), "10:25", "did you mean shapes"),
        (("[shapes]", "[shapes_2]"), "10:25", "asks about data.version 2 of the shapes, not 1"),
        (("[shapes]", "[shapes, shapes]"), "10:33", "given twice"),
        (("[shapes]", "[shapes], at: [1.0, 0.5]"), "10:44", "must go up"),
        (("[shapes]", "[shapes], at: [1.5]"), "10:39", "at most 1"),
        (("[shapes]", "[shapes], at: 0.5"), "10:38", "write [0.5]"),
        (("name: mine", "name: Mine!"), "1:7", "small letters"),
        (("name: mine", "name: 3"), "1:7", "put it in quotes"),
        (("name: mine", "name: mine\nseed: 99999999999999999999"), "2:7", "less than 2^63"),
        (("name: mine", "name: mine\ntrack: {mlflow: 'no'}"), "2:17", "write false"),
    ],
)
def test_a_mistake_is_told_with_its_place_and_the_way_out(
    folder: Path, change: tuple[str, str], place: str, words: str
) -> None:
    assert change[0] in GOOD
    messages = problems(folder, GOOD.replace(*change))
    matching = [line for line in messages if words in line]
    assert matching, messages
    assert matching[0].startswith(f"r.yaml:{place}"), matching


def test_all_mistakes_come_at_once_in_the_order_of_the_file(folder: Path) -> None:
    text = GOOD.replace("mine", "Mine").replace("steps: 10", "stepz: 10").replace("{keep_ratio: 0.5}", "{align: x}")
    messages = problems(folder, text, "gate.keep_ratio=3", "gate.nothing=1", "seed=x")
    assert [line.split(": ")[0] for line in messages] == [
        "r.yaml:1:7",
        "r.yaml:4:1",  # neither steps nor epochs
        "r.yaml:5:3",
        "r.yaml:9:15",
        "override gate.keep_ratio=3",
        "override gate.nothing=1",
        "override seed=x",
    ]
    with pytest.raises(RecipeError, match="7 mistakes") as caught:
        load_recipe("r.yaml", ["gate.keep_ratio=3", "gate.nothing=1", "seed=x"])
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("gate.keep_ration=0.5", "override gate.keep_ration=0.5: unknown key keep_ration under gate; did you mean"),
        ("=3", "key=value"),
        ("gate..x=3", "key=value"),
        ("seed=", "seed=null"),
        ("seed=[1", "not closed"),
        ("name.x=1", "has no keys to override"),
        ("train.optimizer=3", "wants keys of its own"),
    ],
)
def test_a_wrong_override_is_named_as_the_source(folder: Path, override: str, words: str) -> None:
    messages = problems(folder, GOOD, override)
    assert any(line.startswith(f"override {override}: ") and words in line for line in messages), messages


def test_an_override_below_a_null_gate_does_not_switch_the_gate_on(folder: Path) -> None:
    messages = problems(folder, GOOD.replace("{keep_ratio: 0.5}", "null"), "gate.keep_ratio=0.25")
    assert len(messages) == 1
    assert "gate is null at r.yaml:9:7" in messages[0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("# nothing\n", "empty"),
        ("name:mine", "a space after each colon"),
        ("- a\n", "a list"),
        ("{", "not closed"),
    ],
)
def test_a_file_that_is_no_recipe(folder: Path, text: str, words: str) -> None:
    (only,) = problems(folder, text)
    assert only.startswith("r.yaml:1:")
    assert words in only


def test_what_cannot_be_found_or_read(folder: Path) -> None:
    (folder / "big.yaml").write_bytes(b"#" * 1_000_001)
    for name, words in {
        "tiny_regat": "did you mean tiny_regate?",
        "recipes/tiny_regat.yaml": "did you mean tiny_regate?",
        "suites/tiny_claims": "did you mean suites/tiny_claim?",
        "recipes/evaluate/videochat_official.yaml": "did you mean evaluate/videochat2_official?",
        str(folder): "is a folder",
        "big.yaml": "bytes",
    }.items():
        with pytest.raises(RecipeError) as caught:
            load_recipe(name)
        assert words in str(caught.value)
    with pytest.raises(RecipeError) as caught:
        load_recipe("gate.keep_ratio")
    assert caught.value.hint == "to override a key, write gate.keep_ratio=VALUE"


def test_several_recipes_tell_their_mistakes_together(folder: Path) -> None:
    (folder / "a.yaml").write_text(GOOD.replace("mine", "A"))
    (folder / "b.yaml").write_text(GOOD.replace("mine", "B"))
    with pytest.raises(RecipeError) as caught:
        load_recipes(["a.yaml", "b.yaml"])
    assert "a.yaml:1:7" in str(caught.value)
    assert "b.yaml:1:7" in str(caught.value)


def test_the_same_run_twice_is_refused(folder: Path) -> None:
    (folder / "a.yaml").write_text(GOOD)
    (folder / "b.yaml").write_text(GOOD + "description: other words\n")
    with pytest.raises(RecipeError, match="the same run"):
        load_recipes(["a.yaml", "b.yaml"])


def test_a_file_with_an_equals_sign_is_a_file(folder: Path) -> None:
    (folder / "p=0.5.yaml").write_text(GOOD)
    assert not is_override("p=0.5.yaml")
    assert is_override("p=0.5")
    assert load_recipe("p=0.5.yaml").name == "mine"


def test_a_shipped_recipe_is_found_by_name_from_anywhere(folder: Path) -> None:
    by_name = load_recipe("tiny_regate")
    assert by_name.name == "tiny_regate"
    assert load_recipe("tiny_regate.yaml") == by_name == load_recipe("recipes/tiny_regate.yaml")
    (folder / "tiny_regate.yaml").write_text(GOOD)
    assert load_recipe("tiny_regate.yaml").name == "mine"  # a file goes before a shipped recipe


def test_paths_of_a_command_without_a_recipe() -> None:
    assert load_paths(["paths.results=here"]).results == "here"
    for wrong in ("seed=1", "paths.resuls=x", "paths.results=3", "paths=null"):
        with pytest.raises(RecipeError, match=f"override {wrong}"):
            load_paths([wrong])


def test_a_recipe_written_out_is_the_same_run(folder: Path) -> None:
    """`harness show` prints JSON-like YAML with every default; given back, it is the same run."""
    from harness.cli.inspect import shown, shown_lines

    (folder / "r.yaml").write_text("\n".join(shown_lines(shown("tiny_regate", ["gate.keep_ratio=0.25"]))))
    again = load_recipe("r.yaml")
    assert isinstance(again, Recipe)
    assert again.run_id == load_recipe("tiny_regate", ["gate.keep_ratio=0.25"]).run_id


@pytest.mark.parametrize("name", ["tiny_baseline", "tiny_regate"])
def test_keys_that_came_later_leave_the_ids_of_earlier_runs_as_they_were(name: str) -> None:
    plain = load_recipe(name)
    pictures = ["gate.visual={keep: 0.5, how: pool}"] if plain.gate is not None else []
    for path, keys in ADDED_KEYS.items():
        recipe = load_recipe(name, pictures) if path == "gate.visual" else plain
        section: Any = recipe.identity()
        for part in path.split("."):
            section = None if section is None else section.get(part)
        for key, default in keys.items() if section is not None else ():
            assert key not in section
            written = "null" if default is None else json.dumps(default)
            added = [*(pictures if recipe is not plain else ()), f"{path}.{key}={written}"]
            assert load_recipe(name, added).run_id == recipe.run_id
    assert load_recipe(name, ["evaluate.dtype=auto"]).run_id == plain.run_id
    assert load_recipe(name, ["evaluate.dtype=bfloat16"]).run_id != plain.run_id
    with pytest.raises(RecipeError, match=r"evaluate\.dtype is bfloat16 and train\.precision float16"):
        load_recipe(name, ["evaluate.dtype=bfloat16", "train.precision=float16"])
    assert load_recipe(name, ["train.last_layer=all"]).run_id != plain.run_id
    if plain.gate is not None:
        assert load_recipe(name, ["gate.deep=1"]).run_id != plain.run_id
