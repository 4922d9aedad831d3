"""The rendered data set: the same from the same seed, true to its scenes, and silent to a reader of the text."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import re
from collections import Counter, defaultdict
from typing import TYPE_CHECKING

import numpy as np
import pytest

from harness.common.errors import DataError, RecipeError
from harness.common.files import temporary_path
from harness.config.data import ShapesData
from harness.data import shapes
from harness.data.loading.video import decode
from harness.data.shapes.questions import make_test
from harness.data.shapes.render import RGB
from harness.data.shapes.scene import BACKGROUNDS, COLOURS, KINDS, MOTIONS, SHAPES, Scene, make_scene
from harness.data.shapes.text import ABILITIES, NUMBERS, converse
from tests.halting import Moment, halted

if TYPE_CHECKING:
    from pathlib import Path

    from harness.data.shapes.scene import Thing

SMALL = ShapesData(source="shapes", train_clips=24, test_clips=14, stage_clips=10)
CHANCE = {"colour": 4, "shape": 4, "direction": 4, "count": 3, "order": 2, "change": 4, "collision": 2}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shapes.make(SMALL, tmp_path_factory.mktemp("data"), 0)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [make_scene(random.Random(f"t/{i}"), KINDS[i % 4], frames=8, size=64) for i in range(400)]


def _tree(root: Path) -> dict[str, str]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_same_seed_same_bytes_and_another_seed_differs(made: Path, tmp_path: Path) -> None:
    again = shapes.make(SMALL, tmp_path, 0)
    assert again.name == made.name
    assert _tree(again) == _tree(made)
    other = shapes.make(SMALL, tmp_path, 1)
    assert other.name != made.name
    one, two = _tree(made), _tree(other)
    assert not set(one.values()) & set(two.values())


def test_the_data_seed_stands_above_the_recipes(made: Path) -> None:
    pinned = SMALL.model_copy(update={"seed": 0})
    assert shapes.folder(pinned, made.parent, 7) == made
    assert shapes.folder(SMALL, made.parent, 7) != made


def test_manifest_names_every_file_and_splits_are_disjoint(made: Path) -> None:
    listed = {name: entry["sha256"] for name, entry in shapes.manifest(made)["files"].items()}
    found = _tree(made)
    del found["manifest.json"]
    assert listed == found
    clips = {split: {clip.sha256 for clip in shapes.clips(made, split)} for split in ("train", "test", "stage")}
    assert [len(clips[split]) for split in clips] == [24, 14, 10]
    for one, two in itertools.combinations(clips.values(), 2):
        assert not one & two


def test_stage_clips_are_the_first_ones_and_tell_when_there_are_too_few(made: Path) -> None:
    assert shapes.stage_clips(made, 4) == shapes.stage_clips(made)[:4]
    with pytest.raises(RecipeError, match="11 stage clips"):
        shapes.stage_clips(made, 11)


def test_a_killed_maker_leaves_no_set_behind(tmp_path: Path, made: Path) -> None:
    code = (
        "import sys, pathlib; from harness.data import shapes; from harness.config.data import ShapesData;"
        "shapes.make(ShapesData(source='shapes', train_clips=20), pathlib.Path(sys.argv[1]), 0)"
    )
    with halted(Moment("open", r"/clips/train/000007\.mp4$"), "-c", code, tmp_path, cwd=tmp_path) as maker:
        maker.process.kill()
        maker.process.wait()
    (left,) = tmp_path.glob(".shapes-*.tmp")
    assert len(list(left.glob("clips/train/*.mp4"))) == 7
    assert not list(tmp_path.glob("shapes-*"))
    # A left-over of the very set is thrown away, not taken over.
    partial = temporary_path(tmp_path / made.name)
    partial = partial.with_name(partial.name.replace(f"-{os.getpid()}.", f"-{maker.process.pid}."))
    partial.mkdir()
    (partial / "rest.mp4").write_bytes(b"half")
    assert _tree(shapes.make(SMALL, tmp_path, 0)) == _tree(made)


def test_sizes_that_cannot_be_drawn_are_refused(tmp_path: Path) -> None:
    for wrong in ({"size": 63}, {"size": 16}, {"frames": 3}):
        with pytest.raises(RecipeError, match="frames >= 6"):
            shapes.make(SMALL.model_copy(update=wrong), tmp_path, 0)


def test_a_changed_text_is_told(made: Path, tmp_path: Path) -> None:
    root = shapes.make(SMALL, tmp_path, 0)
    path = root / "train.json"
    path.write_bytes(path.read_bytes().replace(b"circle", b"square", 1))
    with pytest.raises(DataError, match=r"train\.json: was changed"):
        shapes.verify_texts(root)


def test_scenes_survive_json(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert Scene.from_json(json.loads(json.dumps(scene.to_json()))) == scene


def test_objects_stay_inside_apart_and_different(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert len({o.shape for o in scene.things}) == len(scene.things) == len({o.colour[0] for o in scene.things})
        for t in range(scene.frames):
            for seen in scene.frame(t):
                assert seen.radius <= seen.x <= 64 - seen.radius
                assert seen.radius <= seen.y <= 64 - seen.radius
        gaps = [_gap(one, two) for one, two in itertools.combinations(scene.things, 2)]
        if scene.hit:
            assert max(gaps) < 0.1  # they touch, in the middle of the clip
        elif gaps:
            assert min(gaps) > 0


def test_in_version_2_objects_are_smaller_nothing_collides_and_the_second_follows_at_once() -> None:
    scenes = [make_scene(random.Random(f"t/{i}"), KINDS[i % 3], frames=8, size=64, version=2) for i in range(300)]
    assert all(3.5 <= thing.radius <= 5.0 for scene in scenes for thing in scene.things)
    gaps = Counter()
    for scene in scenes[1::3]:
        first, second = (thing.visible.index(True) for thing in scene.things)
        gaps[second - first] += 1
        assert all(all(thing.visible[thing.visible.index(True) :]) for thing in scene.things)
    assert gaps.keys() == {1, 2}
    test_objects_stay_inside_apart_and_different(scenes)
    data = ShapesData(source="shapes", version=2)
    kinds = [scene.kind for scene in shapes._scenes(data, 0, "train", 300)]
    assert set(kinds) == {"basic", "order", "change"}


def test_version_2_is_another_set_and_version_1_keeps_its_name(tmp_path: Path) -> None:
    plain = ShapesData(source="shapes")
    assert "version" not in plain.model_dump(mode="json")
    assert shapes.folder(plain, tmp_path, 0) == shapes.folder(ShapesData(source="shapes", version=1), tmp_path, 0)
    assert shapes.folder(plain, tmp_path, 0) != shapes.folder(ShapesData(source="shapes", version=2), tmp_path, 0)


def _gap(one: Thing, two: Thing) -> float:
    """Least distance between two outlines, relative to the radii: 0 where circles would touch."""
    x, y = np.subtract(one.x, two.x), np.subtract(one.y, two.y)
    return float((np.hypot(x, y) / (one.radius + two.radius)).min()) - 1


def test_colours_and_backgrounds_survive_the_video(made: Path) -> None:
    names = list(RGB)
    table = np.array([RGB[name] for name in names], float)
    for clip in shapes.clips(made, "stage"):
        frames_THW3 = decode(clip.path, 8).astype(float)
        assert frames_THW3.shape == (8, 64, 64, 3)
        drawn = np.zeros((8, 64, 64), bool)
        for t in range(8):
            for seen in clip.scene.frame(t):
                if seen.visible:
                    x, y = int(seen.x), int(seen.y)
                    middle = frames_THW3[t, y - 1 : y + 2, x - 1 : x + 2].mean((0, 1))
                    away = np.abs(table - middle).max(1)
                    assert names[int(away.argmin())] == seen.colour
                    assert away.min() < 25
                    drawn[t, max(0, y - 12) : y + 12, max(0, x - 12) : x + 12] = True
        rest = frames_THW3[~drawn] - BACKGROUNDS[clip.scene.background]
        assert np.abs(rest.mean(0)).max() < 4


# --- text ------------------------------------------------------------------------------------------------


def test_conversations_are_in_llava_form(made: Path) -> None:
    records = json.loads((made / "train.json").read_bytes())
    assert len(records) == 3 * 24
    assert len({record["id"] for record in records}) == len(records)
    for record in records:
        human, gpt = record["conversations"]
        assert (human["from"], gpt["from"]) == ("human", "gpt")
        assert human["value"].count("<video>") == 1
        assert (made / record["video"]).is_file()


def test_answers_are_sentences_of_seven_to_fifty_seven_words(scenes: list[Scene]) -> None:
    lengths = [len(a.text.split()) for i, s in enumerate(scenes) for _, _, a in converse(random.Random(i), s, 3)]
    assert min(lengths) >= 7
    assert max(lengths) <= 57
    assert 18 < sum(lengths) / len(lengths) < 25


WORDS = {
    "colour": COLOURS,
    "shape": SHAPES,
    "direction": MOTIONS,
    "count": NUMBERS,
    "change": COLOURS,
    "collision": ("hit", "miss"),
}


def test_spans_cover_exactly_the_words_that_the_question_does_not_tell(scenes: list[Scene]) -> None:
    looks = {word for name, words in WORDS.items() if name != "count" for word in words}
    abilities: Counter[str] = Counter()
    for i, scene in enumerate(scenes):
        for ability, question, answer in converse(random.Random(i), scene, 3):
            abilities[ability] += 1
            covered = set()
            for first, end, name in answer.spans:
                assert answer.text[first:end] in WORDS[name]
                covered.update(range(first, end))
            asked = set(re.findall(r"\w+", question))
            tellable = looks | set(NUMBERS if ability == "count" else ())
            for match in re.finditer(r"\w+", answer.text):
                if match[0] in tellable and match[0] not in asked:
                    assert set(range(*match.span())) <= covered, (answer.text, match[0])
                elif match.start() in covered:
                    assert match[0] not in asked
    assert set(abilities) == {"caption", *ABILITIES}


def test_answers_are_true(scenes: list[Scene]) -> None:
    for i, scene in enumerate(scenes):
        for ability, question, answer in converse(random.Random(i), scene, 3):
            told = [(name, answer.text[a:b]) for a, b, name in answer.spans]
            by_look = {word: o for o in scene.things for word in (o.shape, o.colour[0])}
            about = next((by_look[w] for w in re.findall(r"\w+", question) if w in by_look), None)
            if ability in ("colour", "shape"):
                assert about is not None
                assert about.steady
                assert told == [(ability, about.colour[0] if ability == "colour" else about.shape)]
            elif ability == "direction":
                assert about is not None
                _check_motion(about.x, about.y, told[0][1])
            elif ability == "count":
                assert told == [("count", NUMBERS[len(scene.things)])]
            elif ability == "order":
                first = min(scene.things, key=lambda o: o.visible.index(True))
                assert told == [("colour", first.colour[0]), ("shape", first.shape)]
            elif ability == "change":
                assert about is not None
                assert told == [("change", about.colour[-1])]
                assert about.colour[-1] != about.colour[0]
            elif ability == "collision":
                assert told == [("collision", "hit" if scene.hit else "miss")]


def _check_motion(x: tuple[float, ...], y: tuple[float, ...], word: str) -> None:
    dx, dy = x[-1] - x[0], y[-1] - y[0]
    expected = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), "nowhere": (0, 0)}[word]
    assert (np.sign(dx), np.sign(dy)) == expected
    assert abs(dx + dy) > 25 or word == "nowhere"


# --- questions -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[1, 2])
def asked(request: pytest.FixtureRequest) -> dict[str, list[tuple[Scene, str, tuple[str, ...], int]]]:
    by_ability = defaultdict(list)
    for scene, q in make_test(3, 2100, frames=8, size=64, version=request.param):
        by_ability[q.ability].append((scene, q.text, q.options, q.answer))
    return by_ability


def test_options_are_one_sentence_with_other_grounded_words(asked: dict) -> None:
    assert {ability: len(items[0][2]) for ability, items in asked.items()} == {name: CHANCE[name] for name in asked}
    for ability, items in asked.items():
        for _, _, options, _ in items:
            split = [option.split() for option in options]
            assert len({len(words) for words in split}) == 1
            differing = [place for place in zip(*split, strict=True) if len(set(place)) > 1]
            assert len(differing) == (2 if ability == "order" else 1)
            assert all(len(set(place)) == len(options) for place in differing)


def test_the_right_option_is_true(asked: dict) -> None:
    for ability, items in asked.items():
        for scene, text, options, answer in items:
            word = _grounded(options)[answer]
            thing = scene.things[0]
            assert (
                word
                == {
                    "colour": thing.colour[0],
                    "shape": thing.shape,
                    "direction": thing.motion,
                    "count": NUMBERS[len(scene.things)],
                    "order": f"{thing.colour[0]} {thing.shape}",
                    "change": thing.colour[-1],
                    "collision": "hit" if scene.hit else "miss",
                }[ability]
            )
            if ability == "change":
                assert thing.colour[0] in _grounded(options)  # what it was is the hardest wrong answer
            if ability in ("colour", "direction", "change"):
                assert thing.shape in text


def test_places_and_words_of_the_right_answers_are_balanced(asked: dict) -> None:
    for ability, items in asked.items():
        places = Counter(answer for *_, answer in items)
        assert max(places.values()) - min(places.values()) <= 3, (ability, places)
        words = Counter(_grounded(options)[answer] for *_, options, answer in items)
        if ability != "order":
            assert max(words.values()) - min(words.values()) <= 3, (ability, words)


def test_a_reader_of_the_text_alone_stays_at_chance(asked: dict) -> None:
    """Learn, from half of the questions, how often a word is right when offered; answer the other half by it."""
    for ability, items in asked.items():
        half = len(items) // 2
        offered: Counter[str] = Counter()
        right: Counter[str] = Counter()
        for _, text, options, answer in items[:half]:
            for place, word in enumerate(_grounded(options)):
                for clue in (word, f"{text} {word}", f"{place}"):
                    offered[clue] += 1
                    right[clue] += place == answer
        score = 0
        for _, text, options, answer in items[half:]:
            value = [
                sum((right[c] + 1) / (offered[c] + CHANCE[ability]) for c in (w, f"{text} {w}", f"{place}"))
                for place, w in enumerate(_grounded(options))
            ]
            score += value.index(max(value)) == answer
        chance, count = 1 / CHANCE[ability], len(items) - half
        assert abs(score / count - chance) < 4 * (chance * (1 - chance) / count) ** 0.5, (ability, score / count)


def _grounded(options: tuple[str, ...]) -> list[str]:
    """The words in which the options differ."""
    split = [re.findall(r"\w+", option) for option in options]
    differ = [place for place in range(len(split[0])) if len({words[place] for words in split}) > 1]
    return [" ".join(words[place] for place in differ) for words in split]
