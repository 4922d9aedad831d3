"""Small data sets in the published benchmarks' own schemas, with answers whose scores can be worked out by hand.

Every question carries a tag like [pope 3], by which a model without weights knows what to answer. The layout is that
of docs/benchmarks.md: <root>/<folder>/rows/ and <root>/<folder>/videos/.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import datasets
from PIL import Image

from harness.benchmarks import PAPER_BENCHMARKS, PaperBenchmark
from tests.harness.worlds.evaluation import write_clip

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

Row = dict[str, Any]


@dataclass
class Case:
    """A benchmark on a small data set.

    Attributes:
        answers: what the model says to each question, by the number in its tag.
        score: worked out by hand, as the paper's tables count: 0 to 1, or points; None where a guess decides.
        correct: of each item that is asked, in the order of parts and rows; None where a guess decides.
        unparsable, guessed: numbers of the tags of the answers that are.
    """

    benchmark: PaperBenchmark
    answers: list[str]
    score: float | None
    correct: list[float | None]
    unparsable: list[int] = field(default_factory=list)
    guessed: list[int] = field(default_factory=list)


def make_cases(root: Path) -> dict[str, Case]:
    """Write the data of all fourteen entries below `root`."""
    cases = {}
    for build in (_scienceqa, _mme, _vizwiz, _pope, _seed, _videomme, _longvideobench, _mlvu, _egoschema):
        cases.update({case.benchmark.name: case for case in build(root)})
    for build in (_mvbench, _perceptiontest, _vinoground, _nextqa):
        cases.update({case.benchmark.name: case for case in build(root)})
    return cases


# --- writing ---------------------------------------------------------------------------------------------


def write_parquet(path: Path, rows: Sequence[Row], **special: Any) -> None:
    """Rows as the Hub's parquet files hold them; `special` names columns that are no plain values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = datasets.Dataset.from_list([{k: v for k, v in row.items() if k not in special} for row in rows])
    features = datasets.Features({**plain.features, **special})
    datasets.Dataset.from_list(list(rows), features=features).to_parquet(str(path))


def write_json(path: Path, rows: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows))


def picture(number: int) -> Image.Image:
    """A picture whose width tells its number."""
    return Image.new("RGB", (8 + number, 8), (10 * number % 256, 0, 90))


def with_pictures(rows: list[Row]) -> list[Row]:
    return [{"image": picture(i), **row} for i, row in enumerate(rows)]


def clips(folder: Path, names: Sequence[str]) -> None:
    """One clip, copied under every name."""
    first = folder / names[0]
    first.parent.mkdir(parents=True, exist_ok=True)
    write_clip(first, (200, 30, 30))
    for name in names[1:]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(first, folder / name)


def small(name: str, parts: dict[str, int], rows: int | None = None) -> PaperBenchmark:
    """The entry with the numbers of the small data set."""
    return replace(PAPER_BENCHMARKS[name], parts=parts, rows=sum(parts.values()) if rows is None else rows)


# --- pictures --------------------------------------------------------------------------------------------


def _scienceqa(root: Path) -> list[Case]:
    answers = ["B", "B. Two.", "It is B", "", "A"]
    rows = [
        {
            "question": f"What is it? [scienceqa {i}]",
            "choices": ["one", "two", "three"][: 2 + i % 2],
            "answer": 1,
            "hint": "Look." if i % 2 else "",
            "task": "closed choice",
        }
        for i in range(len(answers))
    ]
    write_parquet(root / "scienceqa/rows/test-0.parquet", with_pictures(rows), image=datasets.Image())
    case = Case(small("scienceqa", {"": 5}), answers, 2 / 5, [1, 1, 0, 0, 0], unparsable=[2])
    return [case]


def _mme(root: Path) -> list[Case]:
    """Two images of OCR, one of existence; one of code_reasoning and of text_translation."""
    said = {
        "OCR": [("Yes", "Yes"), ("No", "no."), ("Yes", "No, it is not."), ("No", "No")],
        "code_reasoning": [("Yes", "maybe"), ("No", "")],
        "existence": [("Yes", "Yes"), ("No", "Yes")],
        "text_translation": [("Yes", "y"), ("No", "n")],
    }
    rows: list[Row] = []
    for category, pairs in said.items():
        for i, (right, _) in enumerate(pairs):
            question = f"Is it so? [mme {len(rows)}] Please answer yes or no."
            row = {"question_id": f"{category}/{i // 2}.png", "question": question, "answer": right}
            rows.append({**row, "category": category})
    write_parquet(root / "mme/rows/test-0.parquet", with_pictures(rows), image=datasets.Image())
    answers = [answer for pairs in said.values() for _, answer in pairs]
    # OCR: one image with both right (200), one with one of two (50): mean 125. existence: 50. Sum 175.
    perception = small("mme_perception", {"existence": 2, "OCR": 4}, rows=10)
    # text_translation: both right, 200. code_reasoning: none, 0. Sum 200.
    cognition = small("mme_cognition", {"text_translation": 2, "code_reasoning": 2}, rows=10)
    return [
        Case(perception, answers, 175.0, [1, 0, 1, 1, 0, 1]),
        Case(cognition, answers, 200.0, [1, 1, 0, 0], unparsable=[4]),
    ]


def _vizwiz(root: Path) -> list[Case]:
    """An answer of n of ten people scores the mean over leaving one of them out of min(1, others / 3)."""
    people = [["cat"] * 10, ["red"] * 2 + ["blue"] * 8, ["unanswerable"] * 1 + ["dog"] * 9, ["Coke"] * 10]
    answers = ["A cat.", "red", "unanswerable", ""]
    rows = [
        {"question_id": f"VizWiz_val_{i}", "question": f"WHAT is this? [vizwiz {i}]", "answers": given}
        for i, given in enumerate(people)
    ]
    write_parquet(root / "vizwiz/rows/val-0.parquet", with_pictures(rows), image=datasets.Image())
    # red: 1/3 without one of the two reds, 2/3 without one of the eight blues. One person: 0 once, 1/3 nine times.
    correct = [1.0, (2 / 3 + 8 * 2 / 3) / 10, 9 * (1 / 3) / 10, 0.0]
    return [Case(small("vizwiz", {"": 4}), answers, (1 + 0.6 + 0.3 + 0) / 4, correct)]


def _pope(root: Path) -> list[Case]:
    answers = ["Yes", " no ", "Yes, there is", "No", ""]
    right = ["yes", "no", "yes", "yes", "no"]
    rows = [
        {
            "question_id": str(i),
            "question": f"Is there a snowboard? [pope {i}]",
            "answer": answer,
            "category": "random",
        }
        for i, answer in enumerate(right)
    ]
    write_parquet(root / "pope/rows/test-0.parquet", with_pictures(rows), image=datasets.Image())
    return [Case(small("pope", {"": 5}), answers, 2 / 5, [1, 1, 0, 0, 0], unparsable=[2])]


def _seed(root: Path) -> list[Case]:
    """Two of the five rows are about videos, and are not asked."""
    answers = ["A", "B. That one.", "never asked", "Because", "never asked"]
    kinds = ["image", "image", "video", "image", "video"]
    rows: list[Row] = [
        {
            "question_id": str(i),
            "question": f"How many? [seed_image {i}]",
            **{f"choice_{letter}": f"{letter}!" for letter in "abcd"},
            "answer": "A",
            "data_type": kind,
            "image": [picture(i)] * (1 if kind == "image" else 3),
        }
        for i, kind in enumerate(kinds)
    ]
    write_parquet(root / "seedbench/rows/test-0.parquet", rows, image=datasets.List(datasets.Image()))
    # "Because" begins with a letter of an option: B.
    return [Case(small("seed_image", {"": 3}, rows=5), answers, 1 / 3, [1, 0, 0])]


# --- long videos -----------------------------------------------------------------------------------------


def _videomme(root: Path) -> list[Case]:
    answers = ["C", "(C)", "The answer is A.", "none of them", ""]
    durations = ["short", "medium", "long", "short", "long"]
    rows = [
        {
            "video_id": f"{i:03d}",
            "videoID": f"clip{i % 2}",
            "question_id": f"{i:03d}-1",
            "question": f"What happens? [videomme {i}]",
            "options": [f"{letter}. thing {letter}." for letter in "ABCD"],
            "answer": "C",
            "duration": duration,
            "domain": "Knowledge",
            "sub_category": "Astronomy",
            "task_type": "Counting Problem",
        }
        for i, duration in enumerate(durations)
    ]
    write_parquet(root / "videomme/rows/test-0.parquet", rows)
    clips(root / "videomme/videos", ["clip0.mp4", "clip1.mkv"])
    return [Case(small("videomme", {"": 5}), answers, 2 / 5, [1, 1, 0, 0, 0], unparsable=[3])]


def _longvideobench(root: Path) -> list[Case]:
    """Four options, or five; what has no letter of one is guessed: so the right one is beyond reach there."""
    answers = ["B", "The answer is D", "i cannot tell", "A", ""]
    rows = [
        {
            "id": f"video{i}_0",
            "video_id": f"video{i}",
            "video_path": f"video{i}.mp4",
            "question": f"What is seen? [longvideobench {i}]",
            **{f"option{k}": f"thing {k}" for k in range(4)},
            "option4": "N/A" if i != 1 else "thing 4",
            "correct_choice": {1: 3, 2: 4, 4: 4}.get(i, 1),
            "question_category": "S2E" if i % 2 else "E2O",
            "duration_group": [15, 60, 600, 3600][i % 4],
        }
        for i in range(len(answers))
    ]
    write_json(root / "longvideobench/rows/lvb_val.json", rows)
    clips(root / "longvideobench/videos", [f"video{i}.mp4" for i in range(len(rows))])
    return [Case(small("longvideobench", {"": 5}), answers, 2 / 5, [1, 1, 0, 0, 0], unparsable=[2], guessed=[2, 4])]


def _mlvu(root: Path) -> list[Case]:
    """Every type has one question, but for two of plotQA and three of order: the mean is over types."""
    types = [*PAPER_BENCHMARKS["mlvu"].parts, "plotQA", "order", "order"]
    right, wrong = "B", "A"
    answers = [right, right, wrong, wrong, right, "(B) that", "hm", wrong, "", "B) this"]
    rows = [
        {
            "video_name": f"{kind}/clip.mp4",
            "duration": 240.0,
            "question": f"What is it? [mlvu {i}]\n(A) one\n(B) two\n(C) three\n(D) four\n",
            "candidates": ["one", "two", "three", "four"],
            "answer": "B",
            "task_type": kind,
        }
        for i, kind in enumerate(types)
    ]
    write_parquet(root / "mlvu/rows/test-0.parquet", rows)
    clips(root / "mlvu/videos", sorted({row["video_name"] for row in rows}))
    # topic 1, anomaly 1, needle 0, ego 0, plotQA (4, 7) 1/2, order (5, 8, 9) 2/3, count (6) 0
    parts = {**dict.fromkeys(PAPER_BENCHMARKS["mlvu"].parts, 1), "plotQA": 2, "order": 3}
    correct = [1.0, 1, 0, 0, 1, 0, 1, 0, 1, 0]
    return [Case(small("mlvu", parts), answers, (1 + 1 + 0 + 0 + 1 / 2 + 2 / 3 + 0) / 7, correct, unparsable=[6])]


def _egoschema(root: Path) -> list[Case]:
    """The right option of a question with an unreadable answer is none of the five, so that no guess is right."""
    answers = ["C", "(C)", "A", "what?", ""]
    rows = [
        {
            "question_idx": str(i),
            "question": f"What does C do? [egoschema {i}]",
            "video_idx": f"ego{i}",
            "option": [f"{letter}. does {letter.lower()}" for letter in "ABCDE"],
            "answer": "2" if i < 3 else "7",
        }
        for i in range(len(answers))
    ]
    write_parquet(root / "egoschema/rows/test-0.parquet", rows)
    clips(root / "egoschema/videos", [f"ego{i}.mp4" for i in range(len(rows))])
    case = Case(small("egoschema", {"": 5}), answers, 2 / 5, [1, 1, 0, 0, 0], unparsable=[3], guessed=[3, 4])
    return [case]


# --- short videos ----------------------------------------------------------------------------------------


def _mvbench(root: Path) -> list[Case]:
    """Two questions of every sub-task; the second is answered right in ten of them. One answer is empty."""
    benchmark = PAPER_BENCHMARKS["mvbench"]
    answers: list[str] = []
    correct: list[float | None] = []
    for number, (part, folder) in enumerate(benchmark.video_folders.items()):
        rows = []
        for i in range(2):
            name = "frames" if part == "episodic_reasoning" else f"{part}{i}.mp4"
            rows.append(
                {
                    "video": name,
                    "question": f"What happens? [mvbench {len(answers)}]",
                    "candidates": ["It opens.", "It closes.", "Nothing."],
                    "answer": "It closes.",
                }
            )
            right = i == 1 and number % 2 == 0
            answers.append("(B) It closes." if right else "A. It opens.")
            correct.append(float(right))
        write_json(root / f"mvbench/rows/{part}.json", rows)
        videos = root / "mvbench/videos" / folder
        if part == "episodic_reasoning":
            (videos / "frames").mkdir(parents=True)
            for i in (2, 0, 1):
                Image.new("RGB", (8, 8), (240 - 80 * i, 0, 0)).save(videos / "frames" / f"{i:05d}.jpg")
        else:
            clips(videos, [row["video"] for row in rows])
    answers[0] = ""  # lmms-eval leaves it out; here it stays in the denominator
    answers[2] = "who knows"
    answers[4] = "\n"  # blanks are none, either
    parts = dict.fromkeys(benchmark.parts, 2)
    return [Case(replace(benchmark, parts=parts, rows=40), answers, 10 * (1 / 2) / 20, correct, unparsable=[2])]


def _perceptiontest(root: Path) -> list[Case]:
    answers = ["A", "B. two", "C", "D", ""]
    rows = [
        {
            "video_name": f"video_{i}",
            "question": f"How many? [perceptiontest {i}]",
            "question_id": i,
            "options": ["one", "two", "three"],
            "answer_id": [0, 1, 0, 0, 0][i],
            "area": "physics",
            "reasoning": "descriptive",
            "tag": ["object"],
        }
        for i in range(len(answers))
    ]
    write_parquet(root / "perceptiontest/rows/validation-0.parquet", rows)
    clips(root / "perceptiontest/videos", [f"video_{i}.mp4" for i in range(len(rows))])
    # D is a letter to the task, but no option of this question
    return [Case(small("perceptiontest", {"": 5}), answers, 2 / 5, [1, 1, 0, 0, 0], unparsable=[3])]


PAIRS = 500


def _vinoground(root: Path) -> list[Case]:
    """All 500 pairs, as the task's aggregation needs: every third has both right, every other third one of two."""
    rows, single, double, answers, correct = [], [], [], [], []
    for pair in range(PAIRS):
        for sign in ("pos", "neg"):
            index = f"{pair}_{sign}"
            for kind, entries in (("text", single), ("video", double)):
                number = len(answers)
                folder = "vinoground_videos" if kind == "text" else "vinoground_videos_concated"
                rows.append({"index": f"{index}_{kind}", "major": "object", "minor": "spatial;contextual"})
                right = "A" if sign == "pos" else "B"
                entry = {"idx": index, "question": f"Which one? [vinoground {number}]", "GT": right}
                entries.append({**entry, "video_name": f"{folder}/clip.mp4"})
                if kind == "text":
                    answers.append("never asked")
                    continue
                good = pair % 3 == 0 or (pair % 3 == 1 and sign == "pos")
                answers.append(f"{right.lower()}." if good else {"A": "B", "B": "A"}[right])
                correct.append(float(good))
    answers[11] = ""  # of pair 2
    answers[9] = "Cannot say"
    write_json(root / "vinoground/rows/lmmseval.json", rows)
    write_json(root / "vinoground/videos/vinoground_videos/vinoground_textscore.json", single)
    write_json(root / "vinoground/videos/vinoground_videos_concated/vinoground_videoscore.json", double)
    clips(root / "vinoground/videos", ["vinoground_videos_concated/clip.mp4"])
    return [Case(PAPER_BENCHMARKS["vinoground"], answers, 167 / 500, correct, unparsable=[9])]


def _nextqa(root: Path) -> list[Case]:
    """What is not read is guessed, and a guess may be right."""
    answers = ["A", "(A)", "the boy", "B", "the small dog runs home at last"]
    rows = [
        {
            "video": 2400 + i,
            "frame_count": 100,
            "width": 32,
            "height": 32,
            "question": f"why did it run? [nextqa {i}]",
            "answer": 0,
            "qid": i,
            "type": "CW",
            **{f"a{k}": f"thing {k}" for k in range(5)},
        }
        for i in range(len(answers))
    ]
    write_parquet(root / "nextqa/rows/test-0.parquet", rows)
    clips(root / "nextqa/videos", [f"{row['video']}.mp4" for row in rows])
    return [Case(small("nextqa", {"": 5}), answers, None, [1, 1, None, 0, None], [2, 4], guessed=[2, 4])]
