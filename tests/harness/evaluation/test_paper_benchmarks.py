"""All of the paper's benchmarks through the real lmms-eval, offline, with answers whose scores are known by hand.

lmms-eval takes ten seconds to import, so one child runs everything: the fourteen entries on small data in their own
schema, Table 6's way of asking, limits, and what goes wrong. An installed package whose lmms-eval plugin is broken is
there all the time: it must not matter.
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import pytest

from harness.benchmarks import PAPER_BENCHMARKS
from harness.benchmarks.scoring import overall, unit_values
from harness.common.errors import HarnessError
from harness.evaluation.files import benchmarks_root, open_published
from harness.evaluation.items import VERDICT, check_aggregate, items_of, summarise_published
from harness.evaluation.lmms.process import LOG, run_child
from tests.harness.worlds.paper_data import Case, make_cases

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow

CHILD = (sys.executable, "-m", "tests.harness.worlds.paper_child")
LIMITS = {"mme_perception": 3, "vinoground": 5, "mvbench": 1, "seed_image": 2}
BEYOND = {"nextqa": [2, 4], "mvbench": [2], "perceptiontest": []}
"""Benchmark -> answers that are more than an option, by the number of the question."""
DIFFERENT = ("vizwiz", "pope", "mlvu")
"""Benchmarks that Table 6 asks in other words than lmms-eval."""


@dataclass
class Ran:
    """What the child did: the outcome of an entry by (name, what was special)."""

    root: Path
    cases: dict[str, Case]
    log: str
    outcomes: dict[tuple[str, str], dict[str, Any]]

    def items(self, name: str, special: str = "") -> list[dict[str, Any]]:
        outcome = self.outcomes[name, special]
        assert "error" not in outcome, outcome
        items: list[dict[str, Any]] = outcome["items"]
        return items

    def prompts(self, name: str, special: str = "") -> list[str]:
        return [asked["prompt"] for asked in self.outcomes[name, special]["asked"]]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    folder = tmp_path_factory.mktemp("paper")
    root = benchmarks_root(str(folder / "data"))
    cases = make_cases(root)
    answers = {
        name.removesuffix("_perception").removesuffix("_cognition"): case.answers for name, case in cases.items()
    }
    without = folder / "without"
    shutil.copytree(root / "egoschema", without / "egoschema")
    (without / "egoschema/videos/ego2.mp4").unlink()
    wanted = [
        *((name, "", root, "task", None) for name in cases),
        *((name, "paper", root, "paper", None) for name in DIFFERENT),
        *((name, "limit", root, "task", limit) for name, limit in LIMITS.items()),
        ("egoschema", "missing", without, "task", None),
    ]
    entries = [
        {
            "name": f"{name}_{special}",
            "benchmark": asdict(cases[name].benchmark),
            "root": str(place),
            "prompts": prompts,
            "limit": limit,
            "out": str(folder / f"{name}_{special}.json"),
        }
        for name, special, place, prompts, limit in wanted
    ]
    broken = folder / "packages"
    (broken / "broken_plugin-1.0.dist-info").mkdir(parents=True)
    (broken / "broken_plugin-1.0.dist-info/METADATA").write_text("Name: broken-plugin\nVersion: 1.0\n")
    points = "[lmms_eval.models]\nbroken = no_such_module_at_all:manifests\n"
    (broken / "broken_plugin-1.0.dist-info/entry_points.txt").write_text(points)
    sys.path.append(str(broken))
    try:
        with run_child(CHILD, folder / "eval", {"entries": entries, "answers": answers}) as events:
            for _ in events:
                pass
    finally:
        sys.path.remove(str(broken))
    outcomes = {
        (name, special): json.loads((folder / f"{name}_{special}.json").read_text()) for name, special, *_ in wanted
    }
    return Ran(root, cases, (folder / "eval" / LOG).read_text(), outcomes)


@pytest.mark.parametrize("name", PAPER_BENCHMARKS)
def test_the_score_is_the_one_worked_out_by_hand(ran: Ran, name: str) -> None:
    case, items = ran.cases[name], ran.items(name)
    benchmark = case.benchmark
    assert ran.outcomes[name, ""]["tasks"] == list(benchmark.lmms_tasks)
    by_hand = [item["correct"] if right is None else right for item, right in zip(items, case.correct, strict=True)]
    assert [item["correct"] for item in items] == pytest.approx(by_hand)
    score = case.score if case.score is not None else sum(by_hand) / len(by_hand)
    assert overall(benchmark.scoring, unit_values(benchmark.scoring, items)) == pytest.approx(score)
    summary = summarise_published(benchmark, items)
    assert summary == ran.outcomes[name, ""]["summary"]
    assert summary["mean"]["value"] == pytest.approx(score)
    assert [task["task"] for task in summary["tasks"]] == [benchmark.part_task(part) for part in benchmark.parts]
    expected = open_published(benchmark, ran.root).expected
    assert {task: sum(item["task"] == task for item in items) for task in expected} == expected


@pytest.mark.parametrize("name", PAPER_BENCHMARKS)
def test_answers_that_say_nothing_are_named_and_stay_in_the_denominator(ran: Ran, name: str) -> None:
    case, items = ran.cases[name], ran.items(name)
    asked = [int(prompt.rpartition(" ")[2].split("]")[0]) for prompt in _tags(ran.prompts(name))]
    number = _numbers(ran, name)
    empty = [number[item["task"], item["key"]] for item in items if item["empty"]]
    assert sorted(empty) == sorted(i for i in asked if not case.answers[i].strip())
    assert sorted(number[i["task"], i["key"]] for i in items if i["unparsable"]) == case.unparsable
    assert sorted(number[i["task"], i["key"]] for i in items if i["guessed"]) == case.guessed
    counts = summarise_published(case.benchmark, items)["counts"]
    beyond = [number[item["task"], item["key"]] for item in items if item.get("beyond_option")]
    assert counts.pop("beyond_option", None) == (None if name == "vizwiz" else len(beyond)), "words are its answers"
    assert sorted(beyond) == BEYOND.get(name, sorted(beyond))
    assert counts == {
        "scored": len(case.correct),
        "empty": len(empty),
        "unparsable": len(case.unparsable),
        "guessed": len(case.guessed),
    }
    assert [item["text"] for item in items] == [case.answers[number[i["task"], i["key"]]] for i in items]


def _tags(prompts: list[str]) -> list[str]:
    return [prompt[prompt.index("[") : prompt.index("]") + 1] for prompt in prompts]


def _numbers(ran: Ran, name: str) -> dict[tuple[str, str], int]:
    """The number in the tag of each item's question: lmms-eval asks a task's documents in their order."""
    benchmark = ran.cases[name].benchmark
    seen: dict[str, list[int]] = {task: [] for task in benchmark.lmms_tasks}
    for sent, tag in zip(ran.outcomes[name, ""]["asked"], _tags(ran.prompts(name)), strict=True):
        seen[sent["task"]].append(int(tag.split()[1].rstrip("]")))
    return {
        (item["task"], item["key"]): seen[item["task"] if benchmark.group else benchmark.task][int(item["key"])]
        for item in ran.items(name)
    }


@pytest.mark.parametrize("name", PAPER_BENCHMARKS)
def test_what_is_sent_is_what_the_entry_says(ran: Ran, name: str) -> None:
    benchmark = ran.cases[name].benchmark
    for sent in ran.outcomes[name, ""]["asked"]:
        assert sent["prompt"].startswith(benchmark.lead)
        assert sent["prompt"].endswith(benchmark.prompt)
        settings = sent["settings"]
        assert settings["max_new_tokens"] == benchmark.max_new_tokens
        assert (settings["do_sample"], settings["temperature"]) == (False, 0)
        assert settings["until"]
        assert set(settings) == {"max_new_tokens", "do_sample", "temperature", "until"}


def test_table_6_changes_the_words_after_the_question_only(ran: Ran) -> None:
    assert {name for name, entry in PAPER_BENCHMARKS.items() if entry.paper_differs} == set(DIFFERENT)
    for name in DIFFERENT:
        benchmark = ran.cases[name].benchmark
        words = f"\n{benchmark.paper.prompt}" if benchmark.paper.prompt else ""
        asked = [prompt.removesuffix(benchmark.prompt) + words for prompt in ran.prompts(name)]
        assert ran.prompts(name, "paper") == asked
        assert [i["correct"] for i in ran.items(name, "paper")] == [i["correct"] for i in ran.items(name)]


def test_pictures_and_videos_are_those_of_the_document(ran: Ran) -> None:
    for name, benchmark in PAPER_BENCHMARKS.items():
        for sent, tag in zip(ran.outcomes[name, ""]["asked"], _tags(ran.prompts(name)), strict=True):
            if benchmark.media == "image":
                assert sent["shown"] == [[8 + int(tag.split()[1].rstrip("]")), sent["shown"][0][1]]]
            elif "episodic" in sent["task"]:
                reds = [red for _, red in sent["shown"]]
                assert reds == sorted(reds, reverse=True), "the frames in the order of their names"
                assert len(reds) == 3
            else:
                assert sent["shown"][0].startswith(f"{benchmark.home}/")
    assert ran.outcomes["videomme", ""]["asked"][1]["shown"] == ["videomme/data/clip1.mkv"]


def test_the_parent_finds_the_videos_that_the_tasks_find(ran: Ran) -> None:
    """The digest holds their names and sizes: it must change with any video that was shown."""
    for name, benchmark in PAPER_BENCHMARKS.items():
        if benchmark.media == "image":
            continue
        case = ran.cases[name].benchmark
        before = open_published(case, ran.root).digest
        shown = ran.outcomes[name, ""]["asked"][-1]["shown"][0]
        path = ran.root / benchmark.folder / "videos" / shown.removeprefix(f"{benchmark.home}/")
        with path.open("ab") as file:
            file.write(b" ")
        assert open_published(case, ran.root).digest != before


def test_a_limit_takes_what_the_parent_expects(ran: Ran) -> None:
    for name, limit in LIMITS.items():
        items = ran.items(name, "limit")
        expected = open_published(ran.cases[name].benchmark, ran.root, limit).expected
        assert {task: sum(item["task"] == task for item in items) for task in expected} == expected
    pairs = [item["unit"] for item in ran.items("vinoground", "limit")]
    assert pairs == ["0", "0", "1", "1"]


def test_a_missing_video_is_named(ran: Ran) -> None:
    error = ran.outcomes["egoschema", "missing"]["error"]
    assert "ego2.mp4 does not exist" in error["message"]
    assert error["exit_code"] == 4


def test_a_broken_plugin_of_another_package_changes_nothing(ran: Ran) -> None:
    assert "no_such_module_at_all" in ran.log, "lmms-eval has seen it"


def test_scores_that_differ_are_refused(ran: Ran) -> None:
    """One item with another verdict, and lmms-eval's number no longer fits."""
    for name, case in ran.cases.items():
        items, numbers = ran.items(name), ran.outcomes[name, ""]["numbers"]
        check_aggregate(case.benchmark, items, numbers)
        wrong = next(i for i, item in enumerate(items) if not item["empty"] and item["correct"] == 1)
        other = [{**item, "correct": 0.0} if i == wrong else item for i, item in enumerate(items)]
        with pytest.raises(HarnessError, match=f"lmms-eval says {case.benchmark.metric} .*, its items say"):
            check_aggregate(case.benchmark, other, numbers)
        with pytest.raises(HarnessError, match=r"lmms-eval says \w+ None"):
            check_aggregate(case.benchmark, items, {})


def test_samples_that_are_not_those_of_the_benchmark_are_named(ran: Ran) -> None:
    pope = ran.cases["pope"].benchmark
    verdict = {"task": "pope", "correct": 1.0, "unparsable": False, "guessed": False}
    sample = {"doc_id": 0, "filtered_resps": ["yes"], VERDICT: verdict}
    assert items_of(pope, {"pope": [sample]})[0]["key"] == "0"
    with pytest.raises(HarnessError, match="did not run pope"):
        items_of(pope, {})
    with pytest.raises(HarnessError, match="item 0 is there twice"):
        items_of(pope, {"pope": [sample, sample]})
    other = {**sample, VERDICT: {**verdict, "task": "mme"}}
    with pytest.raises(HarnessError, match="item 0 is of mme, which is no part of pope"):
        items_of(pope, {"pope": [other]})
