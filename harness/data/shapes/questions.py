"""Held-out multiple-choice questions about rendered clips, balanced so that the text alone tells nothing.

Every option is a whole answer sentence; options of one question share the template and differ in the grounded
words only. Right answers, their places among the options and the distractors are dealt out evenly, and two-way
questions come in mirrored pairs, so that a reader of the text alone scores 1 / number of options.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from harness.data.shapes.scene import COLOURS, MOTIONS, SHAPES, Kind, Want, make_scene
from harness.data.shapes.text import ABILITIES, ANSWERS, CONTACT, NUMBERS, QUESTIONS, facts, fill

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.data.shapes.scene import Scene

KIND: Final[dict[str, Kind]] = {"order": "order", "change": "change", "collision": "collide"}
"""Kind of the clip that an ability is asked on; basic for the rest."""
ASKED: Final = {1: ABILITIES, 2: tuple(ability for ability in ABILITIES if ability != "collision")}
"""Abilities by version of the set."""
_FIELD: Final = {"change": "becomes", "collision": "contact"}
_CLASSES: Final[dict[str, tuple[str, ...]]] = {
    "colour": COLOURS,
    "shape": SHAPES,
    "direction": MOTIONS,
    "count": NUMBERS[1:],
    "change": COLOURS,
}


@dataclass(frozen=True, slots=True)
class Asked:
    """One question about one scene."""

    ability: str
    text: str
    options: tuple[str, ...]
    answer: int


def make_test(seed: int, clips: int, *, frames: int, size: int, version: int = 1) -> list[tuple[Scene, Asked]]:
    """One question a clip, the abilities in turn; those of the set's version."""
    abilities = ASKED[version]
    asked: list[tuple[Scene, Asked]] = []
    share = {ability: len(range(place, clips, len(abilities))) for place, ability in enumerate(abilities)}
    lanes = []
    for ability, count in share.items():
        rng = random.Random(f"shapes/{seed}/test/{ability}")
        make = _pairs if ability in ("order", "collision") else _choices
        lanes.append(make(rng, ability, count, frames, size, version))
    for row in itertools.zip_longest(*lanes):
        asked.extend(item for item in row if item is not None)
    return asked


def _choices(
    rng: random.Random, ability: str, count: int, frames: int, size: int, version: int
) -> list[tuple[Scene, Asked]]:
    """Questions with three or four options out of a closed set of words."""
    classes = _CLASSES[ability]
    places = min(4, len(classes))
    field = _FIELD.get(ability, ability)
    asked = []
    for right, wrong, place in _deal(rng, classes, places, count):
        scene = make_scene(
            rng,
            KIND.get(ability, "basic"),
            frames=frames,
            size=size,
            want=_want(ability, right, wrong),
            version=version,
        )
        values = facts(scene, scene.things[0])
        assert values[field] == right, (values, right)
        words = [*wrong[:place], right, *wrong[place:]]
        template = rng.choice(ANSWERS[ability])
        options = tuple(fill(template, {**values, field: word}).text for word in words)
        question = fill(rng.choice(QUESTIONS[ability]), values).text
        asked.append((scene, Asked(ability, question, options, place)))
    return asked


def _want(ability: str, right: str, wrong: Sequence[str]) -> Want:
    if ability == "colour":
        return Want(colour=right)
    if ability == "shape":
        return Want(shape=right)
    if ability == "direction":
        return Want(motion=right)
    if ability == "count":
        return Want(count=NUMBERS.index(right))
    return Want(becomes=right, colour=wrong[0])  # the colour it had is always among the wrong options


def _deal(rng: random.Random, classes: tuple[str, ...], places: int, count: int) -> list[tuple[str, list[str], int]]:
    """(right word, wrong words, place of the right one): each combination equally often, then shuffled."""
    decks: dict[str, list[tuple[str, ...]]] = {}
    for right in classes:
        deck = list(itertools.combinations([c for c in classes if c != right], places - 1))
        rng.shuffle(deck)
        decks[right] = deck
    dealt = []
    for turn in range(count):
        round_, slot = divmod(turn, len(classes))
        right = classes[slot]
        wrong = list(decks[right][round_ % len(decks[right])])
        rng.shuffle(wrong)
        dealt.append((right, wrong, (round_ + slot) % places))
    rng.shuffle(dealt)
    return dealt


def _pairs(
    rng: random.Random, ability: str, count: int, frames: int, size: int, version: int
) -> list[tuple[Scene, Asked]]:
    """Two-way questions in mirrored pairs: same text and same options, the other one right.

    Every second pair shows its options in the other order, so that places are balanced too.
    """
    asked: list[tuple[Scene, Asked]] = []
    while len(asked) < count:
        colours, shapes = rng.sample(COLOURS, 2), rng.sample(SHAPES, 2)
        looks = tuple(zip(colours, shapes, strict=True))
        template, question = rng.choice(ANSWERS[ability]), rng.choice(QUESTIONS[ability])
        flip = len(asked) // 2 % 2
        if ability == "order":
            options = [fill(template, {"colour": c, "shape": s}).text for c, s in looks]
        else:
            options = [fill(template, {"contact": CONTACT[hit]}).text for hit in (True, False)]
        for right in (0, 1):
            want = (
                Want(looks=looks[::-1] if right else looks)
                if ability == "order"
                else Want(looks=looks, hit=not right)
            )
            scene = make_scene(rng, KIND[ability], frames=frames, size=size, want=want, version=version)
            shown = options[::-1] if flip else options
            asked.append((scene, Asked(ability, question, tuple(shown), right ^ flip)))
    return asked[:count]
