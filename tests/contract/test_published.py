"""What the registry says of the paper's benchmarks, against the installed lmms-eval and the paper's own tables."""

from __future__ import annotations

import ast
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import lmms_eval
import pytest
import yaml
from pydantic import TypeAdapter

from harness.benchmarks import BENCHMARKS, PAPER_BENCHMARKS, PaperBenchmark, PaperCell, find
from harness.benchmarks.scoring import Scoring
from harness.common.errors import EnvironmentProblem, RecipeError
from harness.common.hashing import digest
from harness.evaluation.lmms.official_tasks import Function, Offline, installed_task, own_function

PAPER = yaml.safe_load((Path(__file__).parents[2] / "results/paper/tables.yaml").read_text())
TASKS = Path(lmms_eval.__file__).parent / "tasks"
WORD_LISTS = ("averaged_perceptron_tagger", "wordnet", "punkt")


ALL = {name: entry for name, entry in BENCHMARKS.items() if isinstance(entry, PaperBenchmark)}
"""Those outside the paper, too."""


@pytest.fixture(params=ALL)
def benchmark(request: pytest.FixtureRequest) -> PaperBenchmark:
    return ALL[request.param]


@pytest.fixture(params=PAPER_BENCHMARKS)
def paper_benchmark(request: pytest.FixtureRequest) -> PaperBenchmark:
    return PAPER_BENCHMARKS[request.param]


def cell(benchmark: PaperBenchmark) -> PaperCell:
    assert benchmark.paper is not None
    return benchmark.paper


def settings(benchmark: PaperBenchmark) -> list[dict[str, Any]]:
    return [installed_task(benchmark, task)[0] for task in benchmark.lmms_tasks]


def test_the_installed_tasks_are_those_of_the_entry(benchmark: PaperBenchmark) -> None:
    installed = settings(benchmark)
    assert [task["task"] for task in installed] == list(benchmark.lmms_tasks)
    for task in installed:
        assert task.get("output_type", "generate_until") == "generate_until"
        assert task.get("test_split") == benchmark.split
        assert benchmark.metric in [metric["metric"] for metric in task["metric_list"]]
        assert set(benchmark.beside) <= {metric["metric"] for metric in task["metric_list"]}
        assert task["dataset_path"] == benchmark.origin.repository.split(" ")[0]
        assert all(metric["higher_is_better"] for metric in task["metric_list"])


def test_the_cap_is_the_tasks_where_it_sets_one(benchmark: PaperBenchmark) -> None:
    for task in settings(benchmark):
        own = task.get("generation_kwargs") or {}
        assert own.get("max_new_tokens", benchmark.max_new_tokens) == benchmark.max_new_tokens
        assert not own.get("do_sample")
        assert not own.get("temperature")
    assert benchmark.max_new_tokens <= 128


def test_words_that_the_task_file_holds_are_those_of_the_entry(benchmark: PaperBenchmark) -> None:
    """Those that stand in functions are compared where the tasks are run."""
    for task in settings(benchmark):
        words = (task.get("lmms_eval_specific_kwargs") or {}).get("default", {})
        assert words.get("pre_prompt", "") == ""
        if words.get("post_prompt"):
            assert benchmark.prompt.removeprefix("\n") == words["post_prompt"].removeprefix("\n")


def test_only_words_that_a_task_file_holds_can_be_changed_to_the_papers() -> None:
    for entry in PAPER_BENCHMARKS.values():
        if entry.paper_differs:
            words = settings(entry)[0]["lmms_eval_specific_kwargs"]["default"]
            assert words["post_prompt"] == entry.prompt


def test_videos_are_looked_for_where_the_task_does(benchmark: PaperBenchmark) -> None:
    for task in settings(benchmark):
        cache = (task.get("dataset_kwargs") or {}).get("cache_dir")
        assert (cache is None) == (benchmark.media == "image") == (benchmark.home is None)
        if cache is not None and benchmark.home is not None:
            assert benchmark.home.startswith(cache)


def test_the_papers_prompt_is_that_of_table_6(paper_benchmark: PaperBenchmark) -> None:
    paper = cell(paper_benchmark)
    assert PAPER["tables"]["table6_prompts"][paper.column] == paper.prompt
    assert paper.column in PAPER["tables"][paper.table]["columns"]


def test_every_column_of_the_papers_accuracy_tables_has_its_entries() -> None:
    columns = [
        (table, column)
        for table in ("table1_image", "table2_long_video", "table3_short_video")
        for column in PAPER["tables"][table]["columns"]
        if column not in ("tokens", "frames")
    ]
    cells = {name: cell(entry) for name, entry in PAPER_BENCHMARKS.items()}
    assert list(dict.fromkeys((paper.table, paper.column) for paper in cells.values())) == columns
    assert len(columns) == 13
    places = {name: paper.place for name, paper in cells.items() if paper.place is not None}
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
    assert PAPER_BENCHMARKS[name].items == items
    assert PAPER_BENCHMARKS[name].rows >= items


def test_the_scores_are_combined_as_published() -> None:
    assert {name for name, entry in PAPER_BENCHMARKS.items() if entry.scoring != Scoring()} == {
        "mme_perception", "mme_cognition", "vinoground",
    }  # fmt: skip
    assert PAPER_BENCHMARKS["mme_cognition"].scoring == Scoring(unit="mme", combine="sum", scale="points")
    assert PAPER_BENCHMARKS["vinoground"].scoring.unit == "all_right"
    assert {name for name, entry in PAPER_BENCHMARKS.items() if len(entry.parts) > 1} == {
        "mme_perception", "mme_cognition", "mlvu", "mvbench",
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore:invalid escape")  # in the task of MVBench
def test_the_parts_are_those_of_the_installed_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    _, mme = own_function(TASKS / "mme", "utils.mme_process_results")
    assert list(PAPER_BENCHMARKS["mme_perception"].parts) == mme.eval_type_dict["Perception"]
    assert list(PAPER_BENCHMARKS["mme_cognition"].parts) == mme.eval_type_dict["Cognition"]
    _, mvbench = own_function(TASKS / "mvbench", "utils.mvbench_process_results")
    assert dict(PAPER_BENCHMARKS["mvbench"].video_folders) == mvbench.DATA_LIST
    group = yaml.safe_load((TASKS / "mvbench/mvbench.yaml").read_text())
    assert list(PAPER_BENCHMARKS["mvbench"].lmms_tasks) == group["task"]
    assert len(PAPER_BENCHMARKS["mvbench"].parts) == 20
    source = (TASKS / "mlvu/utils.py").read_text()
    types = ", ".join(f'"{part}"' for part in sorted(PAPER_BENCHMARKS["mlvu"].parts))
    assert f"TASK_TYPES = {{{types}}}" in source


def test_functions_are_read_as_names() -> None:
    task, folder = installed_task(PAPER_BENCHMARKS["egoschema"], "egoschema_subset")
    assert folder == TASKS / "egoschema"
    assert task["doc_to_text"] == "utils.egoschema_doc_to_text"
    assert isinstance(task["doc_to_text"], Function)
    assert task["dataset_kwargs"]["cache_dir"] == "egoschema", "of the included file"
    assert task["lmms_eval_specific_kwargs"]["default"]["post_prompt"], "and not of the included file"


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
        installed_task(PAPER_BENCHMARKS["pope"], "pope")


def test_an_entry_survives_the_job_file(benchmark: PaperBenchmark) -> None:
    assert TypeAdapter(PaperBenchmark).validate_json(json.dumps(asdict(benchmark))) == benchmark


def test_names_are_found_and_near_ones_are_offered() -> None:
    assert {name: find(name) for name in BENCHMARKS} == dict(BENCHMARKS)
    with pytest.raises(RecipeError, match="did you mean mvbench"):
        find("mv-bench")


def test_the_document_tells_the_same(paper_benchmark: PaperBenchmark) -> None:
    benchmark, paper = paper_benchmark, cell(paper_benchmark)
    text = (Path(__file__).parents[2] / "docs/benchmarks.md").read_text()
    rows = [[field.strip() for field in line.strip("|").split("|")] for line in text.splitlines() if "|" in line]
    size = "not known" if benchmark.origin.gigabytes is None else f"{benchmark.origin.gigabytes:g}"
    (about,) = (row for row in rows if row[0] == f"`{benchmark.name}`" and "Table" in row[-1])
    assert about[1].startswith(f"`{benchmark.task}`")
    assert about[2:4] == [f"{benchmark.items:,}", size]
    number = ["table1_image", "table2_long_video", "table3_short_video"].index(paper.table) + 1
    assert f"Table {number}" in about[4]
    assert paper.column in about[4]
    (data,) = (row for row in rows if row[0] == f"`{benchmark.folder}`" and "Table" not in row[-1])
    assert data[1].split(",")[0] == benchmark.origin.repository.split(" ")[0]
    if benchmark.video is not None and not benchmark.group:
        assert data[3] == f"`{benchmark.video}`"


DEFINITIONS = {
    "scienceqa": "0249d1bd200c44cc817cb0e8fc164e354250273e3ecd947e874ee0e285ab2e3f",
    "mme_perception": "a0ae8a91de4fd687b1655123ee18617bdd7eb84865592253183cace8a73dd719",
    "mme_cognition": "8700bbdfed97b24ef0c35a4c518f92d8e87eefa2a1d93f64f87ca029ef923b35",
    "vizwiz": "eb7ece5029104e8ec5f158331c999586c8c5096f7dd46e817ce8e5b0c89a9eb9",
    "pope": "3b336edf5c15894388ffc6b2833e62e63548d5581ba4a9d3fb3e4c9d99432ba7",
    "seed_image": "889a5a34064f7be222ae66163e1dfe465193e1431e6de9e03ff627fb86fd05df",
    "videomme": "eb67af5ff8bb3d2eff8b04d4344ec58177439bb19c37f462ef5838a6b6103fd0",
    "longvideobench": "9e1cb14b3a819d64cd5f2eaee94ba7578fe3a9ae3dd3a8db0f6ed78358b2b96b",
    "mlvu": "b9f21824f1c8cda88179d0ef6679fe05ce94b2245337cded21a8c123c3f98c91",
    "egoschema": "c8db453949b1fb32c369e3e606a513c2bfcc9f4486c95cb20dead4a11fdd7159",
    "mvbench": "8e4f84ebc6490ab7240a4b2bbe23ec19bf9b018492b889228ee38c2dcf1dc44e",
    "perceptiontest": "e594037151608fb2f401524fa8790f6ee180da78d01e496a18eb4610204c93ea",
    "vinoground": "e78be3d3d9770040d033b5a100787fbeaebd8eb3e57c543f2c5f60c43a4ad6a4",
    "nextqa": "953f1d03e819ea122b76d043c7e22aff50b226a5a0e886c361232ce8ab338591",
}
"""Digests under which results were kept before the entry held how its items are judged."""


def test_kept_results_stay_valid() -> None:
    assert {name: digest(entry.definition()) for name, entry in PAPER_BENCHMARKS.items()} == DEFINITIONS


def test_a_definition_outside_the_paper_holds_every_field() -> None:
    outside = replace(PAPER_BENCHMARKS["pope"], paper=None)
    assert outside.definition() == {name: value for name, value in asdict(outside).items() if name != "paper"}
    assert outside.definition() != replace(outside, correct="metric").definition()


def test_an_entry_says_all_that_its_way_of_judging_needs(benchmark: PaperBenchmark) -> None:
    assert (benchmark.correct == "first letter") == bool(benchmark.index_files)
    assert (benchmark.unit_column is None) == (benchmark.scoring.unit == "item")
    if benchmark.answer_field is not None:
        assert bool(benchmark.options) != (benchmark.options_column is not None)
        assert {benchmark.answer_field, benchmark.options_column or benchmark.answer_field} <= set(
            benchmark.columns.split()
        )
    if benchmark.media == "video":
        assert (benchmark.video is None) == bool(benchmark.index_files)
