"""Scenes of moving shapes: what is where in every frame, drawn at random from a seed.

Nothing here depends on numpy's or torch's random streams: `random.Random` seeded with a string gives the same
scenes on every platform and in every version.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    import random

COLOURS: Final = ("red", "green", "blue", "yellow", "purple", "white")
SHAPES: Final = ("circle", "square", "triangle", "cross")
MOTIONS: Final = ("left", "right", "up", "down", "nowhere")
BACKGROUNDS: Final = ((16, 16, 18), (14, 18, 44), (12, 36, 20), (42, 22, 16))
"""Red, green, blue of the four dark backgrounds."""

Kind = Literal["basic", "order", "change", "collide"]
KINDS: Final[tuple[Kind, ...]] = ("basic", "order", "change", "collide")

_STEP: Final = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), "nowhere": (0, 0)}
_MARGIN: Final = 9.0
"""Pixels between a centre and the edge, for a picture of 64 pixels."""
_RADII: Final = {1: (6.0, 7.5), 2: (3.5, 5.0)}
"""Least and greatest radius of an object, for a picture of 64 pixels, by version of the set."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One object in one frame; x to the right and y down, in pixels, of its centre."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float
    visible: bool


@dataclass(frozen=True, slots=True)
class Thing:
    """One object over the whole clip; the tuples have one entry a frame.

    `motion` is one of MOTIONS, or "halt" for an object that runs into another one and stays there.
    """

    shape: str
    radius: float
    motion: str
    colour: tuple[str, ...]
    x: tuple[float, ...]
    y: tuple[float, ...]
    visible: tuple[bool, ...]

    @property
    def steady(self) -> bool:
        """Whether it keeps its colour."""
        return len(set(self.colour)) == 1

    @property
    def always_visible(self) -> bool:
        return all(self.visible)


@dataclass(frozen=True, slots=True)
class Scene:
    """What a clip shows.

    Attributes:
        kind: basic; order (things[0] appears before things[1]); change (things[0] changes its colour);
            collide (things[0] and things[1] move towards each other and hit or miss).
        background: index into BACKGROUNDS.
        hit: whether they touch, for `collide`; None elsewhere.
    """

    kind: Kind
    size: int
    background: int
    things: tuple[Thing, ...]
    hit: bool | None = None

    @property
    def frames(self) -> int:
        return len(self.things[0].x)

    def frame(self, index: int) -> tuple[Seen, ...]:
        """Every object in frame `index`, the invisible ones too (visible=False)."""
        return tuple(
            Seen(o.shape, o.colour[index], o.x[index], o.y[index], o.radius, o.visible[index]) for o in self.things
        )

    def to_json(self) -> dict[str, Any]:
        things = [
            {
                "shape": o.shape,
                "radius": o.radius,
                "motion": o.motion,
                "colour": o.colour[0] if o.steady else list(o.colour),
                "x": list(o.x),
                "y": list(o.y),
                "visible": [int(v) for v in o.visible],
            }
            for o in self.things
        ]
        return {
            "kind": self.kind,
            "size": self.size,
            "background": self.background,
            "hit": self.hit,
            "things": things,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Scene:
        things = tuple(
            Thing(
                shape=o["shape"],
                radius=o["radius"],
                motion=o["motion"],
                colour=(o["colour"],) * len(o["x"]) if isinstance(o["colour"], str) else tuple(o["colour"]),
                x=tuple(o["x"]),
                y=tuple(o["y"]),
                visible=tuple(bool(v) for v in o["visible"]),
            )
            for o in value["things"]
        )
        return cls(value["kind"], value["size"], value["background"], things, value["hit"])


@dataclass(frozen=True, slots=True)
class Want:
    """What a scene must show, for questions whose answers are balanced; None leaves it to chance.

    The first four speak of things[0]. `looks` gives colour and shape of the first things.
    """

    colour: str | None = None
    shape: str | None = None
    motion: str | None = None
    becomes: str | None = None
    count: int | None = None
    hit: bool | None = None
    looks: tuple[tuple[str, str], ...] = ()


def make_scene(
    rng: random.Random, kind: Kind, *, frames: int, size: int, want: Want | None = None, version: int = 1
) -> Scene:
    """A scene of one to three objects, of different colours and different shapes, that never overlap.

    Args:
        version: of the set, as `harness.config.data.ShapesData` has it.
    """
    want = want or Want()
    background = rng.randrange(len(BACKGROUNDS))
    if kind == "collide":
        hit = want.hit if want.hit is not None else rng.random() < 0.5
        pair = _looks(rng, 2, want)
        return Scene(kind, size, background, _approach(rng, pair, hit, frames, size), hit)
    count = 2 if kind == "order" else want.count or rng.randint(1, 3)
    looks = _looks(rng, count, want)
    motions = [rng.choice(MOTIONS) for _ in looks]
    motions[0] = want.motion or motions[0]
    things = _place(rng, looks, motions, frames, size, _RADII[version])
    if kind == "order":
        first, second = _entries(rng, frames, version)
        things = (_shown(things[0], first, frames), _shown(things[1], second, frames))
    elif kind == "change":
        things = (_turned(rng, things[0], want, things[1:]), *things[1:])
    elif count > 1 and rng.random() < 0.35:
        # Some are there for a part of the clip only, so that counting takes more than one frame.
        cut = rng.randint(2, 3) * frames // 8
        start, stop = rng.choice(((cut, frames), (0, frames - cut)))
        things = (*things[:-1], _shown(things[-1], start, stop))
    return Scene(kind, size, background, things)


def _entries(rng: random.Random, frames: int, version: int) -> tuple[int, int]:
    """The frames in which the two objects of an order appear."""
    if version == 1:
        return rng.randint(0, frames // 8), rng.randint(frames // 2, frames // 2 + frames // 8)
    first = rng.randint(0, frames - 5)
    return first, first + rng.randint(1, 2)


def _looks(rng: random.Random, count: int, want: Want) -> list[tuple[str, str]]:
    """(colour, shape) of each object: all colours differ and all shapes differ."""
    colours, shapes = rng.sample(COLOURS, 6), rng.sample(SHAPES, 4)
    for taken, pool in ((want.colour, colours), (want.shape, shapes)):
        if taken is not None:
            pool.remove(taken)
            pool.insert(0, taken)
    for place, (colour, shape) in enumerate(want.looks):
        for taken, pool in ((colour, colours), (shape, shapes)):
            pool.remove(taken)
            pool.insert(place, taken)
    if want.becomes is not None and want.becomes in colours[:count]:
        # The new colour must be new in the whole clip.
        colours.remove(want.becomes)
        colours.append(want.becomes)
    return list(zip(colours[:count], shapes[:count], strict=True))


def _place(
    rng: random.Random,
    looks: list[tuple[str, str]],
    motions: list[str],
    frames: int,
    size: int,
    radii: tuple[float, float],
) -> tuple[Thing, ...]:
    """Paths that keep clear of each other in every frame."""
    while True:
        things: list[Thing] = []
        for (colour, shape), motion in zip(looks, motions, strict=True):
            for _ in range(20):
                thing = _moving(rng, colour, shape, motion, frames, size, radii)
                if all(_clear(thing, other) for other in things):
                    things.append(thing)
                    break
            else:
                break
        if len(things) == len(looks):
            return tuple(things)


def _moving(
    rng: random.Random, colour: str, shape: str, motion: str, frames: int, size: int, radii: tuple[float, float]
) -> Thing:
    scale = size / 64
    dx, dy = _STEP[motion]
    way = rng.uniform(28, 38) * scale
    low, high = _MARGIN * scale, size - _MARGIN * scale

    def start(direction: int) -> float:
        return rng.uniform(low + (way if direction < 0 else 0), high - (way if direction > 0 else 0))

    x, y = start(dx), start(dy)
    part = [t / (frames - 1) for t in range(frames)]
    return Thing(
        shape=shape,
        radius=_round(rng.uniform(*radii) * scale),
        motion=motion,
        colour=(colour,) * frames,
        x=tuple(_round(x + dx * way * p) for p in part),
        y=tuple(_round(y + dy * way * p) for p in part),
        visible=(True,) * frames,
    )


def _clear(first: Thing, second: Thing) -> bool:
    gap = (first.radius + second.radius) * 1.15
    return all(
        (ax - bx) ** 2 + (ay - by) ** 2 > gap * gap
        for ax, ay, bx, by in zip(first.x, first.y, second.x, second.y, strict=True)
    )


def _approach(
    rng: random.Random, looks: list[tuple[str, str]], hit: bool, frames: int, size: int
) -> tuple[Thing, ...]:
    """Two objects that come from opposite sides: on one line they meet half way and stay, on two they pass.

    Objects that turned back after one frame of touch were hardly told from passing ones by a model of this size.
    """
    scale = size / 64
    radii = [_round(rng.uniform(*_RADII[1]) * scale) for _ in looks]
    low, high = _MARGIN * scale, size - _MARGIN * scale
    apart = 0.0 if hit else rng.uniform(20, 28) * scale
    lane = rng.uniform(low, high - apart)
    lanes = rng.sample((lane, lane + apart), 2)
    side = rng.choice((0, 1))  # which of the two comes from the low side
    middle = size / 2 + rng.uniform(-4, 4) * scale
    upright = rng.random() < 0.5
    names = ("down", "up") if upright else ("right", "left")
    things = []
    for place, (colour, shape) in enumerate(looks):
        from_low = place == side
        begin, far = (low, high) if from_low else (high, low)
        contact = middle - radii[place] * 0.9 if from_low else middle + radii[place] * 0.9
        along = []
        for t in range(frames):
            if hit:
                near = min(1.0, t / ((frames - 1) // 2))
                along.append(_round(begin + (contact - begin) * near))
            else:
                along.append(_round(begin + (far - begin) * t / (frames - 1)))
        across = (_round(lanes[place]),) * frames
        things.append(
            Thing(
                shape=shape,
                radius=radii[place],
                motion="halt" if hit else names[0 if from_low else 1],
                colour=(colour,) * frames,
                x=across if upright else tuple(along),
                y=tuple(along) if upright else across,
                visible=(True,) * frames,
            )
        )
    return tuple(things)


def _shown(thing: Thing, start: int, stop: int) -> Thing:
    visible = tuple(start <= t < stop for t in range(len(thing.x)))
    return Thing(thing.shape, thing.radius, thing.motion, thing.colour, thing.x, thing.y, visible)


def _turned(rng: random.Random, thing: Thing, want: Want, others: tuple[Thing, ...]) -> Thing:
    taken = {thing.colour[0], *(o.colour[0] for o in others)}
    after = want.becomes or rng.choice([c for c in COLOURS if c not in taken])
    frames = len(thing.x)
    at = rng.randint(frames * 3 // 8, frames * 5 // 8)
    colour = (thing.colour[0],) * at + (after,) * (frames - at)
    return Thing(thing.shape, thing.radius, thing.motion, colour, thing.x, thing.y, thing.visible)


def _round(value: float) -> float:
    """Hundredths of a pixel: short in JSON, and what is drawn is what is written."""
    return round(value, 2)
