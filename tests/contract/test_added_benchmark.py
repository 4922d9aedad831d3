"""A benchmark outside the paper is one entry: a further task of lmms-eval, added to a copy of the tree and used.

It is listed, its data are checked, lmms-eval asks it, its items are judged and scored, and it has its own table; the
paper's tables stay as they are, byte for byte, also where runs of the paper's models were evaluated on it.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import datasets
import pytest
import yaml

from harness.analysis.paper.numbers import load_paper
from harness.report.table import written
from harness.report.tables import make_tables
from harness.report.tables.paper.build import paper_tables_of
from tests.harness.worlds.paper_data import with_pictures, write_parquet
from tests.harness.worlds.paper_runs import papers_own_runs
from tests.harness.worlds.tree_copy import ROOT, Edit, TreeCopy

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow

ENTRY = Edit(
    "harness/benchmarks/__init__.py",
    before="\n)\n\nBENCHMARKS",
    text="""
    PaperBenchmark(
        name="realworldqa",
        title="RealWorldQA",
        folder="realworldqa",
        task="realworldqa",
        task_file="realworldqa/realworldqa.yaml",
        parts={"": 5},
        metric="exact_match",
        correct="metric",
        answer_field="answer",
        options=("A", "B", "C", "D"),
        split="test",
        rows=5,
        media="image",
        max_new_tokens=16,
        prompt="",
        paper=None,
        columns="image question answer",
        origin=Origin("lmms-lab-encoder/RealWorldQA", "data/test-*.parquet", 0.68, "open", "CC BY-ND 4.0"),
    ),""",
)
ROWS = [  # right option, answer, correct, unparsable
    ("A", "A", 1.0, False),
    ("B", "B. That one", 1.0, False),
    ("C", "The answer is D.", 0.0, False),
    ("D", "", 0.0, False),
    ("A", "no idea", 0.0, True),
]
PAPER_TABLES = """
import json
from harness.analysis.paper.numbers import load_paper
from harness.report.table import written
from harness.report.tables.paper.build import paper_tables_of
from tests.harness.worlds.paper_runs import papers_own_runs, run_of

paper = load_paper()
runs = papers_own_runs(paper)
asked = run_of("VideoLLaMA2", "baseline", {"realworldqa": 0.4}).record
for run in runs:
    run.record["evaluations"].extend(asked["evaluations"])
only = run_of("VideoLLaMA2", "evaluated", {"realworldqa": 0.4})
only.record["totals"] = None
assert not only.trained
tables = paper_tables_of(paper, [*runs, only])
print(json.dumps({table.name: written(table) for table in tables}))
"""


@dataclass(frozen=True)
class Copy(TreeCopy):
    """A copy of the tree with one more entry."""

    @property
    def data(self) -> Path:
        return self.root.parent / "data"

    @property
    def results(self) -> Path:
        return self.root.parent / "results"


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    tree = Copy(TreeCopy.make(tmp_path_factory.mktemp("added") / "tree").root)
    tree.add(ENTRY)
    return tree


def evaluation_of(copy: Copy) -> Path:
    """An evaluation of a model that says B to everything."""
    path = copy.root / "says_b.yaml"
    content = {
        "kind": "evaluation",
        "name": "says_b",
        "model": {"adapter": "lmms_eval", "name": "dummy", "args": {"response": "B"}},
        "benchmarks": ["realworldqa"],
        "paths": {"data": str(copy.data), "results": str(copy.results)},
    }
    path.write_text(yaml.safe_dump(content))
    return path


def write_data(copy: Copy) -> None:
    rows = [
        {"question": f"Which way? A. B. C. D. [realworldqa {number}]", "answer": right}
        for number, (right, *_) in enumerate(ROWS)
    ]
    path = copy.data / "benchmarks/realworldqa/rows/test-0.parquet"
    write_parquet(path, with_pictures(rows), image=datasets.Image())


def test_the_entry_passes_the_contract_of_every_benchmark(copy: Copy) -> None:
    """Also what it says of the installed lmms-eval; nothing else has to be told of it."""
    out = copy.run("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/contract/test_published.py", "-rA")
    assert "[realworldqa]" in out


def test_it_is_listed_and_its_data_are_asked_for(copy: Copy) -> None:
    listed = {entry["name"]: entry for entry in json.loads(copy.run("-m", "harness", "list", "--json"))["benchmarks"]}
    entry = listed["realworldqa"]
    assert entry["paper_table"] is None
    assert "RealWorldQA (not of the paper): lmms-eval realworldqa, 5 of split test" in entry["description"]
    shutil.rmtree(copy.data, ignore_errors=True)
    error = copy.run("-m", "harness", "eval", str(evaluation_of(copy)), status=4)
    assert "realworldqa: no rows" in error
    assert "lmms-lab-encoder/RealWorldQA" in error
    refused = copy.run("-m", "harness", "eval", str(evaluation_of(copy)), "prompts=paper", status=2)
    assert "realworldqa is not of the paper" in refused


def test_lmms_eval_asks_it_and_its_items_are_judged(copy: Copy) -> None:
    """With a model that looks its answers up, as the paper's benchmarks are tested."""
    write_data(copy)
    script = (
        "import json, sys\nfrom dataclasses import asdict\nfrom pathlib import Path\n"
        "from harness.benchmarks import BENCHMARKS\nfrom harness.evaluation.lmms.process import run_child\n"
        "folder, root, answers = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])\n"
        "entry = {'name': 'realworldqa', 'benchmark': asdict(BENCHMARKS['realworldqa']), 'root': root,"
        " 'prompts': 'task', 'limit': None, 'out': str(folder / 'outcome.json')}\n"
        "child = (sys.executable, '-m', 'tests.harness.worlds.paper_child')\n"
        "job = {'entries': [entry], 'answers': {'realworldqa': answers}}\n"
        "with run_child(child, folder, job) as events:\n    list(events)\n"
    )
    folder = copy.root / "looked_up"
    answers = [answer for _, answer, *_ in ROWS]
    copy.run("-c", script, str(folder), str(copy.data / "benchmarks"), json.dumps(answers))
    outcome = json.loads((folder / "outcome.json").read_text())
    assert "error" not in outcome, outcome
    assert [(item["correct"], item["unparsable"]) for item in outcome["items"]] == [row[2:] for row in ROWS]
    assert [item["text"] for item in outcome["items"]] == answers
    assert outcome["summary"]["mean"]["value"] == 2 / 5
    counts = {"scored": 5, "empty": 1, "unparsable": 1, "guessed": 0, "beyond_option": 3}
    assert outcome["summary"]["counts"] == counts


def test_it_has_its_own_table_and_enters_none_of_the_papers(copy: Copy) -> None:
    write_data(copy)
    copy.run("-m", "harness", "eval", str(evaluation_of(copy)))
    copy.run("-m", "harness", "tables", f"paths.results={copy.results}")
    folder = copy.results / "tables"
    table = json.loads((folder / "accuracy_realworldqa.json").read_text())
    assert "realworldqa" in json.dumps(table)
    assert "20.0" in (folder / "accuracy_realworldqa.md").read_text(), "one of five is B"
    # This tree knows nothing of the entry: its tables of the paper are those that the copy wrote.
    before = {table.name: written(table) for table in make_tables(copy.results) if table.name.startswith("paper/")}
    assert before
    for name, forms in before.items():
        for form, text in forms.items():
            assert (folder / f"{name}.{form}").read_text("utf-8") == text
            assert "realworldqa" not in text


def test_the_papers_tables_stay_where_its_models_were_evaluated_on_it(copy: Copy) -> None:
    paper = load_paper()
    before: dict[str, Any] = {table.name: written(table) for table in paper_tables_of(paper, papers_own_runs(paper))}
    assert json.loads(copy.run("-c", PAPER_TABLES)) == before
    evidence = f"paths.results={ROOT / 'results/evidence/tiny_claim'}"
    assert "are what the records give" in copy.run("-m", "harness", "tables", "--check", evidence)
