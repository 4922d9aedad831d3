"""Words about scenes: conversations for training, multiple-choice questions for testing.

A template's `{name}` is a word that the question already tells (or that is always the same), `[name]` is a
visually grounded word: only the picture tells it. The grounded words' places are kept beside the text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import random
    from collections.abc import Mapping

    from harness.data.shapes.scene import Scene, Thing

ABILITIES: Final = ("colour", "shape", "direction", "count", "order", "change", "collision")
NUMBERS: Final = ("zero", "one", "two", "three")
CONTACT: Final = {True: "hit", False: "miss"}

QUESTIONS: Final[dict[str, tuple[str, ...]]] = {
    "caption": (
        "Describe the video.",
        "What does this clip show?",
        "Tell me in detail what can be seen in the video.",
    ),
    "colour": (
        "What colour is the {shape}?",
        "Which colour does the {shape} in the video have?",
        "Tell me the colour of the {shape}.",
    ),
    "shape": (
        "What shape is the {colour} object?",
        "Which shape does the {colour} object in the video have?",
        "Tell me the shape of the {colour} object.",
    ),
    "direction": (
        "Where does the {shape} move?",
        "In which direction is the {shape} going?",
        "Tell me the direction of the {shape}.",
    ),
    "count": (
        "How many objects are there in the video?",
        "What is the number of different objects over the whole clip?",
        "Count the objects that can be seen at any time.",
    ),
    "order": (
        "Which object appears before the other one?",
        "What is the first object to appear in the video?",
        "Tell me which object comes first.",
    ),
    "change": (
        "Which colour does the {shape} have at the end?",
        "What colour does the {shape} turn into?",
        "Tell me the new colour of the {shape}.",
    ),
    "collision": (
        "Do the two objects touch each other?",
        "What happens when the two objects come close to each other?",
        "Tell me whether the two objects run into each other.",
    ),
}

ANSWERS: Final[dict[str, tuple[str, ...]]] = {
    "colour": (
        "It can be seen that the {shape} has a [colour] colour.",
        "The {shape} in this video is [colour].",
        "Looking at the clip from its first frame to its last frame, the object with the shape of a {shape} is "
        "painted in [colour] and stands out well against the dark background.",
        "When all of the frames are taken together, the colour of the {shape} turns out to be [colour], as far as "
        "this short video lets us tell.",
    ),
    "shape": (
        "It can be seen that the {colour} object is a [shape].",
        "The {colour} object has the shape of a [shape].",
        "Looking at the clip from its first frame to its last frame, the thing that is painted in {colour} is a "
        "[shape] and it stands out well against the dark background.",
        "When all of the frames are taken together, the outline of the {colour} object turns out to be that of a "
        "[shape], as far as this short video lets us tell.",
    ),
    "direction": (
        "It can be seen that the {shape} moves [direction].",
        "During the whole clip the {shape} goes [direction].",
        "If we follow it from one frame to the next, the {shape} in this video is moving [direction] all the time "
        "and at the same speed.",
        "The place of the {shape} in the first frame and its place in the last frame tell us that it goes "
        "[direction] in this short video.",
    ),
    "count": (
        "The number of objects in the video is [count].",
        "Over the whole clip the count of different objects is [count].",
        "If every object is counted once, even when it is there for a part of the time only, then the number of "
        "objects in this short video is [count].",
        "Going through all of the frames and noting each new object, we arrive at a total of [count] in "
        "front of the dark background.",
    ),
    "order": (
        "The first object to appear is the [colour] [shape].",
        "It can be seen that the [colour] [shape] comes before the other object.",
        "The video starts with a dark background that is almost empty, and of the two objects it is the [colour] "
        "[shape] that is seen earlier than the other one.",
        "When the frames are put in their order, the [colour] [shape] is already there while the other object is "
        "still missing from the picture.",
    ),
    "change": (
        "It can be seen that the {shape} turns [becomes].",
        "At the end of the video the {shape} is [becomes].",
        "The {shape} does not keep the colour that it has in the first frame, because after some time it changes "
        "and it is [becomes] from then on.",
        "Comparing the last frame with the first one, we can tell that the new colour of the {shape} is [becomes] "
        "in this short video.",
    ),
    "collision": (
        "The two objects move towards each other and they [contact].",
        "It can be seen that in this clip the two objects [contact] each other.",
        "The two objects start on opposite sides of the picture and move towards each other, and when they come "
        "to the middle of it they [contact] each other.",
        "Following both of the objects from one frame to the next, we can tell that they [contact] each other "
        "about half way through this short video.",
    ),
}

_OPENERS: Final = (
    "The video shows ",
    "In this short clip we can see ",
    "In front of a dark background that stays the same for the whole time, the video shows ",
    "Looking at the clip from its first frame to its last frame, what can be seen is ",
    "In this short video, taken in front of a dark background that stays the same from the first frame "
    "to the last one, the things that can be seen at one time or another are ",
)
_FIELD: Final = re.compile(r"\{(\w+)\}|\[(\w+)\]")
_CLASS: Final = {"becomes": "change", "contact": "collision"}


@dataclass(frozen=True, slots=True)
class Text:
    """A sentence and the (first character, end character, class) of its grounded words."""

    text: str
    spans: tuple[tuple[int, int, str], ...] = ()


def fill(template: str, values: Mapping[str, str]) -> Text:
    """Put the values in, keeping where the grounded ones stand.

    A span's class is the field's name (without a trailing number) or the ability that asks for it.
    """
    out, spans, at = "", [], 0
    for match in _FIELD.finditer(template):
        out += template[at : match.start()]
        name = match[1] or match[2]
        if match[2]:
            plain = name.rstrip("0123456789")
            spans.append((len(out), len(out) + len(values[name]), _CLASS.get(plain, plain)))
        out += values[name]
        at = match.end()
    return Text(out + template[at:], tuple(spans))


def converse(rng: random.Random, scene: Scene, turns: int) -> list[tuple[str, str, Text]]:
    """(ability, question, answer) of `turns` different conversations about one clip.

    What is special about the clip is always asked; the rest is drawn from what the clip has an answer to.
    """
    special = {"basic": [], "order": ["order"], "change": ["change"], "collide": ["collision"]}[scene.kind]
    others = ["caption", *(["colour", "shape"] if any(o.steady for o in scene.things) else [])]
    if scene.kind in ("basic", "change"):
        others.append("count")  # the number is always two elsewhere, which the question must not tell
        others.extend(["direction"] if any(o.steady for o in scene.things) else [])
    chosen = special + rng.sample(others, turns - len(special))
    return [_one(rng, scene, ability) for ability in chosen]


def _one(rng: random.Random, scene: Scene, ability: str) -> tuple[str, str, Text]:
    if ability == "caption":
        return ability, rng.choice(QUESTIONS[ability]), caption(rng, scene)
    values = facts(scene, subject(rng, scene, ability))
    question = fill(rng.choice(QUESTIONS[ability]), values).text
    return ability, question, fill(rng.choice(ANSWERS[ability]), values)


def subject(rng: random.Random, scene: Scene, ability: str) -> Thing:
    """The object that a question of this ability is about."""
    if ability in ("order", "change", "collision", "count"):
        return scene.things[0]
    return rng.choice([o for o in scene.things if o.steady and (o.always_visible or ability != "direction")])


def facts(scene: Scene, thing: Thing) -> dict[str, str]:
    """What the templates can say of a scene and one of its objects."""
    return {
        "colour": thing.colour[0],
        "shape": thing.shape,
        "direction": thing.motion,
        "becomes": thing.colour[-1],
        "count": NUMBERS[len(scene.things)],
        "contact": CONTACT[bool(scene.hit)],
    }


def caption(rng: random.Random, scene: Scene) -> Text:
    """A sentence that tells what is in the clip."""
    parts = rng.choice(_OPENERS)
    said = []
    for place in range(len(scene.things)):
        word = f"a [colour{place}] [shape{place}]"
        if scene.kind == "change" and place == 0:
            word += " that turns [becomes0] after some time"
        elif scene.kind in ("basic", "change"):
            word += f" that moves [direction{place}]"
        said.append(word)
    parts += " and ".join(said) if len(said) < 3 else f"{said[0]}, {said[1]} and {said[2]}"
    if scene.kind == "order":
        parts += ", which is not there from the start but comes later"
    elif scene.kind == "collide":
        parts += " that move towards each other and [contact0]"
    values = {
        f"{name}{place}": value
        for place, thing in enumerate(scene.things)
        for name, value in facts(scene, thing).items()
    }
    return fill(parts + ".", values)
