"""From a cell of a table to the run, its record and the items that the score was counted from."""

from __future__ import annotations

import gzip
import json
import sys
from typing import TYPE_CHECKING, Any

import pytest

from harness.cli import main as cli
from harness.records.evaluations import read_item_lines
from tests.harness.worlds import run_builder

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    run_builder.build_pair(tmp_path / "results")
    return tmp_path


@pytest.fixture
def trace(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    def run(*arguments: str, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["harness", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        assert int(ended.value.code or 0) == code, err
        return err if code else out

    return run


def items_of(folder: Path, name: str) -> list[dict[str, Any]]:
    (path,) = folder.glob(f"results/runs/{name}-*/eval/step-000040/shapes.items.jsonl*")
    return read_item_lines(path)


def test_a_score_is_counted_again_from_the_items_it_leads_to(folder: Path, trace: Any) -> None:
    answer = json.loads(trace("trace", "accuracy_shapes", "demo_regate", "colour", "--json"))
    (run,) = answer["runs"]
    assert run["id"].startswith("demo_regate-")
    assert json.loads((folder / run["record"]).read_text())["id"] == run["id"]
    evaluation = run["evaluation"]
    assert evaluation["items"] == [item for item in items_of(folder, "demo_regate") if item["ability"] == "colour"]
    right = sum(item["correct"] for item in evaluation["items"])
    assert answer["values"]["colour"] == pytest.approx(right / len(evaluation["items"]))
    assert (evaluation["right"], evaluation["scored"]) == (right, len(evaluation["items"]))


def test_a_difference_leads_to_both_runs(trace: Any) -> None:
    answer = json.loads(trace("trace", "accuracy_shapes", "difference", "mean", "--json"))
    assert [run["id"].rpartition("-")[0] for run in answer["runs"]] == ["demo_regate", "demo_baseline"]
    assert all(run["evaluation"]["step"] == 40 for run in answer["runs"])


def test_one_item_is_told_with_the_losses_of_its_options(folder: Path, trace: Any) -> None:
    item = next(item for item in items_of(folder, "demo_regate") if item["ability"] == "colour")
    told = trace("trace", "accuracy_shapes", "demo_regate", "colour", "--item", item["key"])
    assert f"{item['task']}/{item['key']}" in told
    for loss in item["option_loss"]:
        assert f"{loss:8.3f} nats" in told
    assert "its question is not kept" in told  # the builder writes no questions


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("accuracy_shape", "demo_regate", "mean"), "no table accuracy_shape; did you mean accuracy_shapes?"),
        (("accuracy_shapes", "nobody", "mean"), "nobody is no row of accuracy_shapes; name one by its number"),
        (("accuracy_shapes", "demo", "mean"), "demo is the name of several rows of accuracy_shapes"),
        (("accuracy_shapes", "1", "coulour"), "coulour is no column of accuracy_shapes; did you mean colour?"),
        (("accuracy_shapes", "1", "mean", "--item", "x"), "no item x"),
    ],
)
def test_what_is_not_there_is_named_with_what_is(trace: Any, arguments: tuple[str, ...], message: str) -> None:
    assert message in trace("trace", *arguments, code=2)


def test_every_table_names_the_runs_of_its_rows(folder: Path, trace: Any) -> None:
    trace("tables")
    for name in ("accuracy_shapes", "pairs", "tokens", "time"):
        table = json.loads((folder / "results" / "tables" / f"{name}.json").read_text())
        assert len(table["runs"]) == len(table["rows"])
        assert all(table["runs"]), name
        for ids in table["runs"]:
            assert all((folder / "results" / "runs" / run_id / "record.json").is_file() for run_id in ids)


def test_compressed_items_give_the_same_tables(folder: Path, trace: Any) -> None:
    trace("tables")
    for path in folder.glob("results/runs/*/eval/*/*.items.jsonl"):
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert "are what the records give" in trace("tables", "--check")


def test_an_item_of_a_run_whose_questions_are_not_kept_is_not_asked_again(folder: Path, trace: Any) -> None:
    item = items_of(folder, "demo_regate")[0]
    message = trace("show", "demo_regate", f"{item['task']}/{item['key']}", code=5)
    assert "the questions of shapes are not kept" in message
