"""What is wrong with a published benchmark's data is found and named before anything is computed."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
import pytest

from harness.benchmarks import PAPER_BENCHMARKS
from harness.common.errors import DataError, RecipeError
from harness.evaluation.files import benchmarks_root, missing_published, open_published, origin_words
from harness.evaluation.rows import choose
from tests.harness.worlds.paper_data import Case, clips, make_cases, write_json

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Case]]:
    root = benchmarks_root(str(tmp_path_factory.mktemp("data")))
    return root, make_cases(root)


@pytest.fixture
def nextqa(tmp_path: Path) -> tuple[Path, Case]:
    """NExT-QA with rows in a JSON file that tests may change."""
    from tests.harness.worlds.paper_data import small

    rows = [
        {"video": i, "question": "why?", "answer": 0, "qid": i, **{f"a{k}": f"thing {k}" for k in range(5)}}
        for i in range(7)
    ]
    write_json(tmp_path / "nextqa/rows/test.json", rows)
    clips(tmp_path / "nextqa/videos", [f"{i}.mp4" for i in range(7)])
    return tmp_path, Case(small("nextqa", {"": 7}), [], 0.0, [])


def test_whole_data_are_counted(whole: tuple[Path, dict[str, Case]]) -> None:
    root, cases = whole
    for name, case in cases.items():
        data = open_published(case.benchmark, root)
        assert list(data.expected) == [case.benchmark.part_task(part) for part in case.benchmark.parts]
        assert sum(data.expected.values()) == len(case.correct) == case.benchmark.items, name
        assert missing_published(case.benchmark, root) == []


def test_nothing_there_is_told_with_size_origin_and_terms(tmp_path: Path) -> None:
    for benchmark in PAPER_BENCHMARKS.values():
        with pytest.raises(DataError, match="no rows") as caught:
            open_published(benchmark, tmp_path)
        for words in (benchmark.name, str(tmp_path / benchmark.folder), origin_words(benchmark)):
            assert words in str(caught.value)
        assert missing_published(benchmark, tmp_path) == [f"{tmp_path / benchmark.folder}: {origin_words(benchmark)}"]
    gated = origin_words(PAPER_BENCHMARKS["longvideobench"])
    assert "161.5 GB" in gated
    assert "gated" in gated
    assert "CC BY-NC-SA 4.0" in gated


def test_missing_videos_are_named_five_and_counted(nextqa: tuple[Path, Case]) -> None:
    root, case = nextqa
    for i in range(1, 7):
        (root / f"nextqa/videos/{i}.mp4").unlink()
    with pytest.raises(DataError, match=r"6 of 7 videos are missing in .*: 1.mp4, 2.mp4.*, 5.mp4 and 1 more; fetch"):
        open_published(case.benchmark, root)
    assert "6 of 7 videos are missing" in missing_published(case.benchmark, root)[0]
    assert open_published(case.benchmark, root, limit=1).expected == {"nextqa": 1}, "only what is asked is needed"


def test_a_video_may_have_another_ending(nextqa: tuple[Path, Case]) -> None:
    root, case = nextqa
    (root / "nextqa/videos/3.mp4").rename(root / "nextqa/videos/3.MP4")
    open_published(case.benchmark, root)


def test_rows_of_another_split_are_not_taken(whole: tuple[Path, dict[str, Case]], nextqa: tuple[Path, Case]) -> None:
    root, cases = whole
    published = PAPER_BENCHMARKS["mme_perception"]
    with pytest.raises(DataError, match=r"holds 2 items of existence, the published split has 60"):
        open_published(published, root)
    with pytest.raises(DataError, match=r"holds 10 rows, the published split has 11"):
        open_published(replace(cases["mme_cognition"].benchmark, rows=11), root)
    root, case = nextqa
    rows = json.loads((root / "nextqa/rows/test.json").read_text())
    write_json(root / "nextqa/rows/more.json", [{**row, "video": 0} for row in rows])
    with pytest.raises(DataError, match=r"holds 14 items, the published split has 7"):
        open_published(case.benchmark, root)


def test_a_missing_column_is_named(nextqa: tuple[Path, Case]) -> None:
    root, case = nextqa
    rows = json.loads((root / "nextqa/rows/test.json").read_text())
    write_json(root / "nextqa/rows/test.json", [{k: v for k, v in row.items() if k != "a4"} for row in rows])
    with pytest.raises(DataError, match=r"test.json: has no column a4; it has a0, a1"):
        open_published(case.benchmark, root)


def test_pictures_that_would_not_be_opened_are_named(whole: tuple[Path, dict[str, Case]], tmp_path: Path) -> None:
    """A parquet file that another tool wrote again has the bytes of the pictures, and no word of what they are."""
    root, cases = whole
    (tmp_path / "pope/rows").mkdir(parents=True)
    table = pq.read_table(root / "pope/rows/test-0.parquet")
    pq.write_table(table.replace_schema_metadata(None), tmp_path / "pope/rows/test-0.parquet")
    with pytest.raises(DataError, match=r"test-0.parquet: its column image is not marked as pictures"):
        open_published(cases["pope"].benchmark, tmp_path)


def test_files_that_cannot_be_read_are_named(nextqa: tuple[Path, Case]) -> None:
    root, case = nextqa
    path = root / "nextqa/rows/test.json"
    for text in ("[{]", '["a"]', '"a"'):
        path.write_text(text)
        with pytest.raises(DataError, match=r"test.json: cannot be read"):
            open_published(case.benchmark, root)
    (root / "nextqa/rows/test.parquet").write_bytes(b"PAR1 not")
    with pytest.raises(DataError, match=r"files of several kinds \(\.json, \.parquet\)"):
        open_published(case.benchmark, root)
    path.unlink()
    with pytest.raises(DataError, match=r"test.parquet: cannot be read"):
        open_published(case.benchmark, root)


def test_rows_may_be_lines_or_a_table(nextqa: tuple[Path, Case]) -> None:
    root, case = nextqa
    path = root / "nextqa/rows/test.json"
    rows = json.loads(path.read_text())
    path.unlink()
    lines = root / "nextqa/rows/test.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    open_published(case.benchmark, root)
    lines.unlink()
    table = [",".join(rows[0]), *(",".join(str(value) for value in row.values()) for row in rows)]
    (root / "nextqa/rows/test.csv").write_text("\n".join(table) + "\n")
    open_published(case.benchmark, root)


def test_the_digest_sees_rows_and_videos_and_not_where_they_lie(nextqa: tuple[Path, Case], tmp_path: Path) -> None:
    root, case = nextqa
    base = open_published(case.benchmark, root).digest
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    (root / "nextqa").rename(moved / "nextqa")
    assert open_published(case.benchmark, moved).digest == base
    (moved / "nextqa/videos/0.mp4").write_bytes(b"another video")
    other_video = open_published(case.benchmark, moved).digest
    assert other_video != base
    path = moved / "nextqa/rows/test.json"
    path.write_text(path.read_text().replace('"answer": 0', '"answer": 1', 1))
    assert open_published(case.benchmark, moved).digest not in (base, other_video)


# --- what is scored together -----------------------------------------------------------------------------


def test_a_limit_takes_whole_images_and_whole_pairs(whole: tuple[Path, dict[str, Case]]) -> None:
    root, cases = whole
    mme = cases["mme_perception"].benchmark
    assert open_published(mme, root, limit=3).expected == {"mme_perception_existence": 2, "mme_perception_OCR": 2}
    assert open_published(cases["vinoground"].benchmark, root, limit=5).expected == {"vinoground": 4}
    assert open_published(cases["seed_image"].benchmark, root, limit=2).expected == {"seed_image": 2}
    mvbench = open_published(cases["mvbench"].benchmark, root, limit=1)
    assert set(mvbench.expected.values()) == {1}
    assert len(mvbench.expected) == 20
    for name in ("mme_cognition", "vinoground"):
        with pytest.raises(RecipeError, match=f"limit: 1 is less than the 2 items that {name} scores as one"):
            open_published(cases[name].benchmark, root, limit=1)


def test_a_partial_pair_or_image_is_named() -> None:
    rows = [{"index": f"{i}_{sign}_video"} for i in range(3) for sign in ("pos", "neg")]
    vinoground = PAPER_BENCHMARKS["vinoground"]
    assert choose(vinoground, rows, None) == {"": [0, 1, 2, 3, 4, 5]}
    with pytest.raises(DataError, match="vinoground: 1 items for 1, where 2 are scored together"):
        choose(vinoground, rows[:3], None)
    image = {"category": "OCR", "question_id": "a.png"}
    with pytest.raises(DataError, match=r"mme_perception: 3 items of OCR for a.png, where 2"):
        choose(PAPER_BENCHMARKS["mme_perception"], [image] * 3, None)
    assert choose(PAPER_BENCHMARKS["mme_cognition"], [image] * 3, None) == {}


def test_the_pieces_of_vinoground_are_named_where_they_lack(whole: tuple[Path, dict[str, Case]]) -> None:
    root, cases = whole
    vinoground = cases["vinoground"].benchmark
    path = root / "vinoground/videos/vinoground_videos_concated/vinoground_videoscore.json"
    text = path.read_text()
    try:
        path.write_text(json.dumps([entry for entry in json.loads(text) if entry["idx"] != "7_neg"]))
        with pytest.raises(DataError, match=r"vinoground_videoscore.json has no entry 7_neg"):
            open_published(vinoground, root)
        path.write_text("{")
        with pytest.raises(DataError, match=r"vinoground_videoscore.json: damaged"):
            open_published(vinoground, root)
        path.unlink()
        with pytest.raises(DataError, match=r"vinoground_videoscore.json is missing"):
            open_published(vinoground, root)
    finally:
        path.write_text(text)
