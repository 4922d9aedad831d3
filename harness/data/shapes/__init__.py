"""A synthetic video data set: rendered clips of moving shapes, conversations about them, held-out questions.

Everything follows from the numbers of `ShapesData` and a seed. A made set is one folder:

    clips/{train,test,stage}/000000.mp4     three disjoint sets of clips
    train.json                              conversations, in the LLaVA / Video-ChatGPT format, with "spans"
    questions.json                          multiple choice, about the test clips
    scenes-{train,test,stage}.json          what every clip shows, frame by frame
    manifest.json                           sha256 of every other file
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import random
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from harness.common.errors import DataError, RecipeError
from harness.common.files import atomic_folder, check_kind
from harness.common.hashing import digest
from harness.data.shapes.questions import make_test
from harness.data.shapes.scene import KINDS, Scene, Want, make_scene
from harness.data.shapes.text import converse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from harness.config.data import ShapesData
    from harness.data.shapes.questions import Asked

    Progress = Callable[[str, int, int], None]
    """Called with what is being done, how much is done, and how much there is."""

SCHEMA: Final = 1
GENERATOR: Final = 1
"""Version of scenes, pictures and words: raise it when they change, and old sets are made anew."""
CONVERSATIONS: Final = 3
"""Conversations for each training clip."""
_SHARE: Final = {1: (0.4, 0.2, 0.2, 0.2), 2: (0.5, 0.25, 0.25, 0.0)}
"""Part of each kind, in the order of KINDS, among training and stage clips, by version of the set."""
_SINGLE: Final = 0.5
"""Part of the stage clips that show one object only: which word goes with which object is learned from these in
half as many steps. Nothing is asked about stage clips, so this tells nothing about the number of objects."""

Split = Literal["train", "test", "stage"]


@dataclass(frozen=True, slots=True)
class Clip:
    """A clip on disk and what it shows."""

    path: Path
    sha256: str
    scene: Scene


def folder(data: ShapesData, parent: Path, seed: int) -> Path:
    """Where the set of this recipe is, made or not: `shapes-` and eight digits of everything it depends on."""
    return parent / f"shapes-{digest(_identity(data, seed))[:8]}"


def make(data: ShapesData, parent: Path, seed: int, progress: Progress | None = None) -> Path:
    """Render the set, unless it is there. A killed run leaves nothing that looks like a set.

    Raises:
        RecipeError: sizes that cannot be drawn or encoded.
    """
    if data.frames < 6 or data.size < 32 or data.size % 2:
        raise RecipeError(
            f"data: shapes need frames >= 6 and an even size >= 32, not frames {data.frames} and size {data.size}"
        )
    root = folder(data, parent, seed)
    parent.mkdir(parents=True, exist_ok=True)
    with _alone(parent / f".{root.name}.lock"):
        if not root.exists():
            # Every clip is held to its hash in the manifest when the set is opened: syncing thousands buys nothing.
            with atomic_folder(root, keep_existing=True, durable=False) as partial:
                _make(data, partial, seed, progress or (lambda what, done, total: None))
    return root


def clips(root: Path, split: Split) -> tuple[Clip, ...]:
    """Clips of a made set, in order.

    Raises:
        DataError: the set is not there or was made by another version.
    """
    files = manifest(root)["files"]
    scenes = _read(root / f"scenes-{split}.json")["scenes"]
    return tuple(Clip(root / name, files[name]["sha256"], Scene.from_json(scene)) for name, scene in scenes.items())


def stage_clips(root: Path, limit: int | None = None) -> tuple[Clip, ...]:
    """The first `limit` clips (all: None) kept for training the vision tower and the projector."""
    stage = clips(root, "stage")
    if limit is not None and limit > len(stage):
        raise RecipeError(f"{limit} stage clips are asked for, the data set has {len(stage)}: raise data.stage_clips")
    return stage[:limit]


def manifest(root: Path) -> dict[str, Any]:
    """manifest.json: schema, data, encoder, and files = {relative path: {sha256, bytes}}."""
    return _read(root / "manifest.json")


def verify_texts(root: Path) -> None:
    """Compare every file of the set but the clips with the manifest (the clips are checked as media).

    Raises:
        DataError: a file is missing or changed.
    """
    for name, entry in manifest(root)["files"].items():
        if name.endswith(".json"):
            try:
                actual = hashlib.sha256((root / name).read_bytes()).hexdigest()
            except FileNotFoundError:
                actual = None
            if actual != entry["sha256"]:
                state = "is missing" if actual is None else "was changed"
                raise DataError(
                    f"{root / name}: {state} since it was made", hint=f"delete {root} and run `harness data make`"
                )


def _identity(data: ShapesData, seed: int) -> dict[str, Any]:
    numbers = data.model_dump(mode="json", exclude={"damaged"})
    return {**numbers, "seed": data.seed if data.seed is not None else seed, "generator": GENERATOR}


def _make(data: ShapesData, root: Path, seed: int, progress: Progress) -> None:
    from harness.data.shapes.render import CODEC, draw, encode

    identity = _identity(data, seed)
    seed = identity["seed"]
    train = _scenes(data, seed, "train", data.train_clips)
    test = make_test(seed, data.test_clips, frames=data.frames, size=data.size, version=data.version)
    scenes: dict[Split, Sequence[Scene]] = {
        "train": train,
        "test": [scene for scene, _ in test],
        "stage": _scenes(data, seed, "stage", data.stage_clips),
    }
    total = sum(len(part) for part in scenes.values())
    files: dict[str, dict[str, Any]] = {}

    def write(name: str, content: bytes) -> None:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
        files[name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}

    for split, part in scenes.items():
        for index, scene in enumerate(part):
            write(_clip(split, index), encode(draw(scene)))
            if len(files) % 200 == 0 or len(files) == total:
                progress("rendering clips", len(files), total)
    for split, part in scenes.items():
        shown = {_clip(split, index): scene.to_json() for index, scene in enumerate(part)}
        write(f"scenes-{split}.json", _json({"schema": SCHEMA, "scenes": shown}))
    write("train.json", _json(_conversations(train, seed)))
    write("questions.json", _json({"schema": SCHEMA, "questions": _questions([q for _, q in test])}))
    manifest = {"schema": SCHEMA, "data": identity, "encoder": {"codec": CODEC, **_versions()}, "files": files}
    (root / "manifest.json").write_bytes(_json(manifest))


def _scenes(data: ShapesData, seed: int, split: Split, count: int) -> list[Scene]:
    scenes = []
    for index in range(count):
        rng = random.Random(f"shapes/{seed}/{split}/{index}")
        single = split == "stage" and rng.random() < _SINGLE
        kind = "basic" if single else rng.choices(KINDS, _SHARE[data.version])[0]
        want = Want(count=1) if single else None
        scenes.append(
            make_scene(rng, kind, frames=data.frames, size=data.size, want=want, version=data.version)
        )
    return scenes


def _conversations(scenes: Sequence[Scene], seed: int) -> list[dict[str, Any]]:
    """LLaVA records; "spans" holds [turn, first character, end character, class] of the grounded words."""
    records = []
    for index, scene in enumerate(scenes):
        rng = random.Random(f"shapes/{seed}/text/{index}")
        for number, (ability, question, answer) in enumerate(converse(rng, scene, CONVERSATIONS)):
            text = f"<video>\n{question}" if rng.random() < 0.5 else f"{question}\n<video>"
            turns = [{"from": "human", "value": text}, {"from": "gpt", "value": answer.text}]
            records.append(
                {
                    "id": f"{index:06d}/{number}",
                    "video": _clip("train", index),
                    "conversations": turns,
                    "ability": ability,
                    "spans": [[1, *span] for span in answer.spans],
                }
            )
    return records


def _questions(asked: Sequence[Asked]) -> list[dict[str, Any]]:
    return [
        {
            "key": f"{q.ability}/{index:06d}",
            "ability": q.ability,
            "video": _clip("test", index),
            "question": q.text,
            "options": list(q.options),
            "answer": q.answer,
        }
        for index, q in enumerate(asked)
    ]


def _clip(split: Split, index: int) -> str:
    return f"clips/{split}/{index:06d}.mp4"


def _versions() -> dict[str, str]:
    import av

    return {"av": av.__version__, "libavcodec": ".".join(map(str, av.library_versions["libavcodec"]))}


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _read(path: Path) -> dict[str, Any]:
    check_kind(path)
    try:
        value: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path}: not there; make the clips with `harness data make`") from None
    except ValueError as error:
        raise DataError(f"{path}: damaged ({error}); delete {path.parent} and make it again") from None
    if not isinstance(value, dict):
        raise DataError(f"{path}: damaged (not a JSON object); delete {path.parent} and make it again")
    if value.get("schema") != SCHEMA:
        raise DataError(f"{path}: schema {value.get('schema')}, this version reads {SCHEMA}; delete {path.parent}")
    return value


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process at a time; the lock goes with the process that holds it, however it ends."""
    check_kind(path)
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
