"""What the registry says of the paper's benchmarks, against the installed lmms-eval and the paper's own tables."""

from __future__ import annotations

import ast
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lmms_eval
import pytest
import yaml
from pydantic import TypeAdapter

from harness.benchmarks import BENCHMARKS, PUBLISHED, Published, find
from harness.benchmarks.scoring import Scoring
from harness.common.errors import EnvironmentProblem, RecipeError
from harness.evaluation.lmms.official_tasks import Function, Offline, installed_task, own_function

PAPER = yaml.safe_load((Path(__file__).parents[2] / "results/paper/tables.yaml").read_text())
TASKS = Path(lmms_eval.__file__).parent / "tasks"
WORD_LISTS = ("averaged_perceptron_tagger", "wordnet", "punkt")


@pytest.fixture(params=PUBLISHED)
def benchmark(request: pytest.FixtureRequest) -> Published:
    return PUBLISHED[request.param]


def settings(benchmark: Published) -> list[dict[str, Any]]:
    return [installed_task(benchmark, task)[0] for task in benchmark.lmms_tasks]


def test_the_installed_tasks_are_those_of_the_entry(benchmark: Published) -> None:
    found = settings(benchmark)
    assert [one["task"] for one in found] == list(benchmark.lmms_tasks)
    for one in found:
        assert one.get("output_type", "generate_until") == "generate_until"
        assert one.get("test_split") == benchmark.split
        assert benchmark.metric in [metric["metric"] for metric in one["metric_list"]]
        assert set(benchmark.beside) <= {metric["metric"] for metric in one["metric_list"]}
        assert one["dataset_path"] == benchmark.origin.repository.split(" ")[0]
        assert all(metric["higher_is_better"] for metric in one["metric_list"])


def test_the_cap_is_the_tasks_where_it_sets_one(benchmark: Published) -> None:
    for one in settings(benchmark):
        own = one.get("generation_kwargs") or {}
        assert own.get("max_new_tokens", benchmark.max_new_tokens) == benchmark.max_new_tokens
        assert not own.get("do_sample")
        assert not own.get("temperature")
    assert benchmark.max_new_tokens <= 128


def test_words_that_the_task_file_holds_are_those_of_the_entry(benchmark: Published) -> None:
    """Those that stand in functions are compared where the tasks are run."""
    for one in settings(benchmark):
        words = (one.get("lmms_eval_specific_kwargs") or {}).get("default", {})
        assert words.get("pre_prompt", "") == ""
        if words.get("post_prompt"):
            assert benchmark.prompt.removeprefix("\n") == words["post_prompt"].removeprefix("\n")


def test_only_words_that_a_task_file_holds_can_be_changed_to_the_papers() -> None:
    for one in PUBLISHED.values():
        if one.paper_differs:
            words = settings(one)[0]["lmms_eval_specific_kwargs"]["default"]
            assert words["post_prompt"] == one.prompt


def test_videos_are_looked_for_where_the_task_does(benchmark: Published) -> None:
    for one in settings(benchmark):
        cache = (one.get("dataset_kwargs") or {}).get("cache_dir")
        assert (cache is None) == (benchmark.media == "image") == (benchmark.home is None)
        if cache is not None and benchmark.home is not None:
            assert benchmark.home.startswith(cache)


def test_the_papers_prompt_is_that_of_table_6(benchmark: Published) -> None:
    assert PAPER["tables"]["table6_prompts"][benchmark.column] == benchmark.paper_prompt
    assert benchmark.column in PAPER["tables"][benchmark.table]["columns"]


def test_every_column_of_the_papers_accuracy_tables_has_its_entries() -> None:
    columns = [
        (table, column)
        for table in ("table1_image", "table2_long_video", "table3_short_video")
        for column in PAPER["tables"][table]["columns"]
        if column not in ("tokens", "frames")
    ]
    assert list(dict.fromkeys((one.table, one.column) for one in PUBLISHED.values())) == columns
    assert len(columns) == 13
    places = {one.name: one.column_place for one in PUBLISHED.values() if one.column_place is not None}
    assert places == {"mme_perception": 1, "mme_cognition": 0}
    largest = max(row["values"][2] or [0, 0] for row in PAPER["tables"]["table1_image"]["regate"].values())
    assert largest[1] > 800 > largest[0], "perception is the one that can be above 800"


@pytest.mark.parametrize(
    ("name", "items"),
    [
        ("scienceqa", 2017), ("mme_perception", 2114), ("mme_cognition", 260), ("vizwiz", 4319), ("pope", 9000),
        ("seed_image", 14233), ("videomme", 2700), ("longvideobench", 1337), ("mlvu", 2174), ("egoschema", 500),
        ("mvbench", 4000), ("perceptiontest", 19140), ("vinoground", 1000), ("nextqa", 8564),
    ],
)  # fmt: skip
def test_the_numbers_of_items_are_the_published_ones(name: str, items: int) -> None:
    assert PUBLISHED[name].items == items
    assert PUBLISHED[name].rows >= items


def test_the_scores_are_combined_as_published() -> None:
    assert {name for name, one in PUBLISHED.items() if one.scoring != Scoring()} == {
        "mme_perception", "mme_cognition", "vinoground",
    }  # fmt: skip
    assert PUBLISHED["mme_cognition"].scoring == Scoring(unit="mme", combine="sum", scale="points")
    assert PUBLISHED["vinoground"].scoring.unit == "all_right"
    assert {name for name, one in PUBLISHED.items() if len(one.parts) > 1} == {
        "mme_perception", "mme_cognition", "mlvu", "mvbench",
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore:invalid escape")  # in the task of MVBench
def test_the_parts_are_those_of_the_installed_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    _, mme = own_function(TASKS / "mme", "utils.mme_process_results")
    assert list(PUBLISHED["mme_perception"].parts) == mme.eval_type_dict["Perception"]
    assert list(PUBLISHED["mme_cognition"].parts) == mme.eval_type_dict["Cognition"]
    _, mvbench = own_function(TASKS / "mvbench", "utils.mvbench_process_results")
    assert dict(PUBLISHED["mvbench"].video_folders) == mvbench.DATA_LIST
    group = yaml.safe_load((TASKS / "mvbench/mvbench.yaml").read_text())
    assert list(PUBLISHED["mvbench"].lmms_tasks) == group["task"]
    assert len(PUBLISHED["mvbench"].parts) == 20
    source = (TASKS / "mlvu/utils.py").read_text()
    types = ", ".join(f'"{part}"' for part in sorted(PUBLISHED["mlvu"].parts))
    assert f"TASK_TYPES = {{{types}}}" in source


def test_functions_are_read_as_names() -> None:
    found, folder = installed_task(PUBLISHED["egoschema"], "egoschema_subset")
    assert folder == TASKS / "egoschema"
    assert found["doc_to_text"] == "utils.egoschema_doc_to_text"
    assert isinstance(found["doc_to_text"], Function)
    assert found["dataset_kwargs"]["cache_dir"] == "egoschema", "of the included file"
    assert found["lmms_eval_specific_kwargs"]["default"]["post_prompt"], "and not of the included file"


@pytest.mark.parametrize(
    ("task", "dropped"),
    [
        ("longvideobench", ["from decord import VideoReader, cpu"]),
        ("nextqa", [f"nltk.download('{name}', quiet=True)" for name in WORD_LISTS]),
        ("pope", []),
    ],
)
def test_a_module_loses_a_decoder_and_downloads_and_nothing_else(task: str, dropped: list[str]) -> None:
    """LongVideoBench's needs no decord then, and NExT-QA's does not reach for the network when it is imported."""
    source = (TASKS / task / "utils.py").read_text()
    whole = ast.unparse(ast.parse(source)).splitlines()
    left = ast.unparse(Offline().visit(ast.parse(source))).splitlines()
    assert [line.strip() for line in whole if line.strip() in dropped] == dropped
    assert left == [line for line in whole if line.strip() not in dropped]


def test_a_task_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(lmms_eval, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(EnvironmentProblem, match=r"pope: the installed lmms-eval has no .*pope/pope.yaml"):
        installed_task(PUBLISHED["pope"], "pope")


def test_an_entry_survives_the_job_file(benchmark: Published) -> None:
    assert TypeAdapter(Published).validate_json(json.dumps(asdict(benchmark))) == benchmark


def test_names_are_found_and_near_ones_are_offered() -> None:
    assert {name: find(name) for name in BENCHMARKS} == dict(BENCHMARKS)
    with pytest.raises(RecipeError, match="did you mean mvbench"):
        find("mv-bench")


def test_the_document_tells_the_same(benchmark: Published) -> None:
    text = (Path(__file__).parents[2] / "docs/benchmarks.md").read_text()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "|" in line]
    size = "not known" if benchmark.origin.gigabytes is None else f"{benchmark.origin.gigabytes:g}"
    (told,) = (row for row in rows if row[0] == f"`{benchmark.name}`" and "Table" in row[-1])
    assert told[1].startswith(f"`{benchmark.task}`")
    assert told[2:4] == [f"{benchmark.items:,}", size]
    assert (
        f"Table {['table1_image', 'table2_long_video', 'table3_short_video'].index(benchmark.table) + 1}" in told[4]
    )
    assert benchmark.column in told[4]
    (data,) = (row for row in rows if row[0] == f"`{benchmark.folder}`" and "Table" not in row[-1])
    assert data[1].split(",")[0] == benchmark.origin.repository.split(" ")[0]
    if benchmark.video is not None and not benchmark.group:
        assert data[3] == f"`{benchmark.video}`"
