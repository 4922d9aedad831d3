"""What CONTRIBUTING.md says of adding things is true: each is added to a copy of the tree and used there.

The files that an addition changes are those that its paragraph names, no more and no fewer.
"""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from harness.config.data import ShapesData
from harness.config.recipe import Paths
from harness.data.sources import make_data
from tests.contract.test_added_benchmark import ENTRY
from tests.harness.worlds.tree_copy import ROOT, Edit, TreeCopy

if TYPE_CHECKING:
    from collections.abc import Iterator

SELECTION = (
    Edit(
        "regate/selection.py",
        before="SELECTIONS: Mapping",
        text='''def last_score(position_BS: Tensor) -> Tensor:
    """The last candidates of the row."""
    return position_BS


''',
    ),
    Edit("regate/selection.py", before="}\n\"\"\"By the value of `gate.selection`", text='''\
    "last": SelectionMethod("last targets", last_score),
'''),
)
SOURCE = (
    Edit(
        "harness/data/sources/clip_table.py",
        '''"""The source `clip_table`: a CSV file with a clip, a question and an answer in each row."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.data.formats import File, Row
from harness.data.packed import Rows
from harness.data.sample import SamplingPolicy, Turn
from harness.data.sources.source import EXPECTED, Annotations, cache_file, missing_files, pack

if TYPE_CHECKING:
    from harness.common.progress import Progress
    from harness.config.data import ClipTableData
    from harness.config.recipe import Paths


@dataclass(frozen=True, slots=True)
class ClipTableSource:
    """Implements `harness.data.sources.source.Source`."""

    data: ClipTableData
    paths: Paths
    seed: int
    made_here: bool = False
    origin: str = "a table of your own"
    repositories: tuple[tuple[str, str], ...] = ()
    blank: int = 64
    stated_samples: int | None = None
    stated_targets: float | None = None
    asked_subset: str | None = None
    sampling: SamplingPolicy = SamplingPolicy()
    one_modality: bool = False

    def identity(self) -> list[Any]:
        return []

    def missing(self) -> list[str]:
        base = Path(self.paths.data)
        return missing_files([base / self.data.table], [base], folders_key="paths.data", origin=self.origin)

    def make(self, progress: Progress | None) -> Path:
        raise AssertionError("brought, not made")

    def read(self) -> Annotations:
        root = Path(self.paths.data)
        with (root / self.data.table).open(newline="") as file:
            lines = list(csv.DictReader(file))
        rows = Rows(self.data.source)
        read = [
            Row(
                f"row {number}",
                (File("video", line["clip"]),),
                (Turn("user", "<media:0>\\n" + line["question"]), Turn("assistant", line["answer"])),
            )
            for number, line in enumerate(lines)
        ]
        bad = pack(rows, read, self.data.table)
        files = {line["clip"]: EXPECTED["video"] for line in lines}
        return Annotations(root, rows, tuple(bad), {cache_file(self.paths, "clip_table"): files})
''',
    ),
    Edit("harness/data/sources/__init__.py", before="if TYPE_CHECKING:", text='''\
from harness.data.sources.clip_table import ClipTableSource

'''),
    Edit("harness/data/sources/__init__.py", before='    "videochat2_it": VideoChat2Source,', text='''\
    "clip_table": ClipTableSource,
'''),
    Edit(
        "harness/config/data.py",
        before="Data = Annotated[",
        text='''class ClipTableData(Strict):
    """A CSV file with a clip, a question and an answer in each row."""

    source: Literal["clip_table"]
    table: str
    frames: PositiveInt = 8
    damaged: Literal["refuse", "exclude"] = "refuse"


''',
    ),
    Edit("harness/config/data.py", before=", Field(discriminator=\"source\")]", text=" | ClipTableData"),
)
TABLE = (
    Edit(
        "harness/report/tables/lengths.py",
        '''"""How long each run was."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.report.table import Column, Table, count, label

if TYPE_CHECKING:
    from collections.abc import Iterable

    from harness.analysis.runs import Run


def lengths_table(runs: Iterable[Run]) -> Table:
    """Steps and samples of every run."""
    columns = (Column("run", ("run",)), Column("steps", ("steps",)), Column("samples", ("samples",)))
    rows = tuple(
        (label(run.id), count(run.totals["steps"]), count(run.totals["samples"])) for run in runs if run.trained
    )
    return Table("lengths", "Length", columns, rows)
''',
    ),
    Edit("harness/report/tables/__init__.py", before="if TYPE_CHECKING:", text='''\
from harness.report.tables.lengths import lengths_table

'''),
    Edit("harness/report/tables/__init__.py", before="    _target_tables,\n    lambda", text='''\
    lambda shown: [lengths_table(shown.single)],
'''),
)
VERB = (
    Edit(
        "harness/cli/main.py",
        before="# --- data ---",
        text='''@app.command("recipes-of")
@guarded
def recipes_of_family(family: Annotated[str, typer.Argument(metavar="FAMILY")]) -> None:
    """Name the shipped recipes of a model family."""
    from harness.config.load import RECIPE, shipped

    typer.echo("\\n".join(name for name in shipped(RECIPE) if name.startswith(family)))


''',
    ),
    Edit("tests/architecture/command_line.txt", before="harness data make", text="harness recipes-of FAMILY\n"),
)
ADDITIONS = {
    "A way to select": SELECTION,
    "A data source": SOURCE,
    "A benchmark": (ENTRY,),
    "A table": TABLE,
    "A verb": VERB,
}
RECIPE = {
    "name": "added",
    "model": {"adapter": "tiny_videollama2"},
    "data": {"source": "clip_table", "table": "clips.csv"},
    "train": {"steps": 6, "global_batch": 4, "micro_batch": 4, "optimizer": {"lr": 1e-3}, "workers": 0},
    "gate": {"selection": "last", "cycle_steps": 3, "dense_steps": 1, "warmup_steps": 1},
    "evaluate": {"benchmarks": []},
    "track": {"mlflow": False},
}


def paragraphs() -> Iterator[tuple[str, str]]:
    """Heading and text of each item below "Adding things"."""
    text = (ROOT / "CONTRIBUTING.md").read_text().split("## Adding things")[1].split("\n## ")[0]
    for part in re.split(r"^- \*\*", text, flags=re.MULTILINE)[1:]:
        heading, _, rest = part.partition("**")
        yield heading, rest


@pytest.mark.parametrize("what", ADDITIONS)
def test_the_paragraph_names_the_files_that_are_changed(what: str) -> None:
    named = set(re.findall(r"`((?:harness|regate|tests)/[\w/.]+)`", dict(paragraphs())[what]))
    changed = {edit.file for edit in ADDITIONS[what]}
    new = {edit.file for edit in ADDITIONS[what] if edit.before is None}
    assert {file for file in named if not file.endswith("/")} == changed - new
    assert {f"{Path(file).parent}/" for file in new} <= named


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> TreeCopy:
    """One copy with everything added, so that the additions do not disturb each other either."""
    root = tmp_path_factory.mktemp("additions") / "tree"
    (root / "tests").mkdir(parents=True)
    tree = TreeCopy.make(root)
    (root / "tests/architecture").mkdir()
    for name in ("__init__.py", "command_line.txt", "test_command_line.py"):
        (root / "tests/architecture" / name).write_text((ROOT / "tests/architecture" / name).read_text())
    for edits in ADDITIONS.values():
        for edit in edits:
            tree.add(edit)
    return tree


@pytest.fixture(scope="module")
def record(copy: TreeCopy) -> dict[str, Any]:
    """Of a run from the added source with the added selection."""
    shapes = ShapesData(source="shapes", train_clips=6, test_clips=1, stage_clips=1)
    clips = make_data(shapes, Paths(data=str(copy.root / "made")), 0)
    data = copy.root / "workspace" / "data"
    (data / "clips").mkdir(parents=True)
    with (data / "clips.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["clip", "question", "answer"])
        for clip in sorted(clips.rglob("*.mp4")):
            (data / "clips" / clip.name).write_bytes(clip.read_bytes())
            table.writerow([f"clips/{clip.name}", "What is to be seen?", "Something that moves, and something else."])
    (copy.root / "added.yaml").write_text(yaml.safe_dump(RECIPE))
    copy.run("-m", "harness", "run", "added.yaml")
    (path,) = (copy.root / "results" / "runs").glob("added-*/record.json")
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded


@pytest.mark.slow
def test_a_run_takes_the_added_source_and_the_added_selection(record: dict[str, Any]) -> None:
    assert record["status"] == "complete"
    assert record["recipe"]["data"]["source"] == "clip_table"
    assert record["recipe"]["gate"]["selection"] == "last"
    counts = record["totals"]["counts"]
    assert 0 < counts["scored"] < counts["target"], "sparse steps were taken"
    assert record["reference"] is None, "a score that reads no reference loss needs no teacher"


@pytest.mark.slow
def test_the_added_table_is_written_with_the_others(copy: TreeCopy, record: dict[str, Any]) -> None:
    with (copy.root / "results" / "tables" / "lengths.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row == {"run": record["id"], "steps": "6", "samples": str(record["totals"]["samples"])}


@pytest.mark.slow
def test_the_added_verb_answers_and_the_frozen_listing_holds_it(copy: TreeCopy) -> None:
    assert copy.run("-m", "harness", "recipes-of", "videochat2").splitlines() == [
        "videochat2_baseline",
        "videochat2_regate",
        "videochat2_regate_fast",
    ]
    copy.run("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/architecture/test_command_line.py")


@pytest.mark.slow
def test_what_was_added_is_listed_and_a_wrong_name_is_still_refused(copy: TreeCopy) -> None:
    listed = json.loads(copy.run("-m", "harness", "list", "--json"))
    assert "clip_table" in {entry["name"] for entry in listed["sources"]}
    assert "realworldqa" in {entry["name"] for entry in listed["benchmarks"]}
    error = copy.run("-m", "harness", "validate", "tiny_regate", "gate.selection=lost", status=2)
    assert "gate.selection" in error
    assert "last" in error
