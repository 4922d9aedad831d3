"""A world small enough to work out by hand: three clips of one colour each, and questions about them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import av
import numpy as np

from harness.benchmarks import Benchmark
from harness.config.recipe import Recipe
from harness.data.sample import Media, Question
from harness.data.sources import DataSet

if TYPE_CHECKING:
    from pathlib import Path

COLOURS = {"red": (255, 0, 0), "blue": (0, 0, 255), "green": (0, 255, 0)}
COLOUR_OPTIONS = ("It is red.", "It is blue.", "It is very very green.")
MOTION_OPTIONS = ("A ball moves left.", "A cube moves right.")
KNOWN = {
    "known": Benchmark("known", "shapes", ("colour", "motion"), left_out=("motion",)),
    "letters": Benchmark("letters", "shapes", ("colour", "motion"), form="letter", max_new_tokens=4),
}


def write_clip(path: Path, colour: tuple[int, int, int]) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=4)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for i in range(4):
            picture_HW3 = np.full((32, 32, 3), colour, dtype=np.uint8)
            picture_HW3[:, : 8 * i] //= 2
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture_HW3, format="rgb24")))
        container.mux(stream.encode())


def make_data(folder: Path) -> DataSet:
    """Six questions about colours, five about motion; the right one is at each place in turn."""
    media = []
    for name, colour in COLOURS.items():
        write_clip(folder / f"{name}.mp4", colour)
        media.append(Media("video", folder / f"{name}.mp4", sha256=name))
    colour_questions = [
        Question(f"c{i}", "colour", (media[i % 3],), "What is it?", COLOUR_OPTIONS, i % 3) for i in range(6)
    ]
    motion_questions = [
        Question(f"m{i}", "motion", (media[i % 3],), "What moves?", MOTION_OPTIONS, i % 2) for i in range(5)
    ]
    questions = (*colour_questions, *motion_questions)
    return DataSet("shapes", folder, (), questions, (), "fingerprint", frames=2)


def make_recipe(*benchmarks: str, batch: int = 8) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "known",
            "model": {"adapter": "tiny"},
            "data": {"source": "shapes", "frames": 2, "size": 32},
            "train": {"steps": 1, "global_batch": 1, "micro_batch": 1, "optimizer": {"lr": 1e-3}},
            "gate": None,
            "evaluate": {"benchmarks": benchmarks, "batch": batch},
        }
    )
