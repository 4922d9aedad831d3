"""What a recipe says of its data: one section for each source."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from harness.config.section import Strict

Frames = Annotated[int, Field(ge=1, le=65_536)]
"""Of one clip."""
Clips = Annotated[int, Field(ge=1, le=10_000_000)]
"""That are rendered here."""


def _first(value: Any) -> bool:
    """Left out of the identity at its default: sets and runs from before there was the key keep their names."""
    return bool(value == 1)


class ShapesData(Strict):
    """Rendered clips of moving shapes; made on the spot by `harness data make shapes`."""

    source: Literal["shapes"]
    version: Literal[1, 2] = Field(default=1, exclude_if=_first)
    """1 is asked by the benchmark shapes, 2 by shapes_2. In 2 nothing collides, which was learned or not by seed.
    Shape and order, which were near their ceilings, are harder: objects are smaller, and the second one appears one
    or two frames after the first."""
    train_clips: Clips = 2000
    test_clips: Clips = 1200
    stage_clips: Clips = 3000
    """Other clips, for the vision tower's and the projector's own training."""
    frames: Frames = 8
    size: Annotated[int, Field(ge=1, le=4096)] = 64
    """Pixels, width and height."""
    seed: NonNegativeInt | None = None
    """None takes the recipe's seed."""
    damaged: Literal["refuse", "exclude"] = "refuse"


class LlavaData(Strict):
    """A file in the LLaVA / Video-ChatGPT conversation format and the folder of its media."""

    source: Literal["llava"]
    annotations: tuple[str, ...]
    """Relative to paths.data."""
    media: str
    frames: Frames = 16
    samples: PositiveInt | None = None
    """How many samples the paper or the data card states; `plan` uses it while the files are not there."""
    targets_per_sample: PositiveFloat | None = None
    """Likewise, mean number of targets of a sample."""
    damaged: Literal["refuse", "exclude"] = "refuse"


class Annotation(Strict):
    """A file of annotations and the folder of its media."""

    file: str
    """Relative to paths.data."""
    media: str = "."
    """Relative to data.media."""


class Subset(Strict):
    """A part of the data, drawn by the hash of each sample's id: of two sizes, the smaller is within the larger."""

    size: PositiveInt
    unit: Literal["samples", "pairs"] = "samples"
    """pairs: questions with their answers, of which a sample of VideoChat2-IT has one or several."""
    seed: NonNegativeInt = 0


class VideoChat2Data(Strict):
    """VideoChat2-IT: one train.json for each source set, and the folders of their media."""

    source: Literal["videochat2_it"]
    annotations: tuple[Annotation, ...]
    media: str = "."
    """The folder that the media folders of the annotations stand in, relative to paths.data."""
    subset: Subset | None = None
    frames: Frames = 16
    frame_sampling: Literal["uniform", "random"] = "uniform"
    """Frames of a video in training: the middle of each of `frames` parts, or one drawn from each part in each epoch
    (the official `rand`)."""
    shuffle_turns: bool = False
    """Show the pairs of a sample in another order in each epoch, the instruction being that of the pair shown first
    (official). The stores keep the order of the file."""
    augment: Literal["none", "official"] = "none"
    """official: a random crop, resized to 224 pixels, and a random flip, the same for all frames of a clip."""
    batches: Literal["one_medium", "mixed"] = "one_medium"
    """one_medium: the samples of an optimizer step are all videos or all images (official)."""
    samples: PositiveInt | None = None
    targets_per_sample: PositiveFloat | None = None
    damaged: Literal["refuse", "exclude"] = "refuse"


def _is_middle(value: str) -> bool:
    return value == "middle"


def _is_none(value: int | None) -> bool:
    return value is None


class InternVLData(Strict):
    """Annotations in InternVL's form: a meta file that names .jsonl files, each with the folder of its media."""

    source: Literal["internvl"]
    meta: str
    """The meta file, relative to paths.data; so are the annotations that it names."""
    media: str = "."
    """The folder that the `root` of each entry starts at, relative to paths.data."""
    frames: Frames = 16
    frame_sampling: Literal["middle", "random"] = Field(default="middle", exclude_if=_is_middle)
    """Frames of a video in training: the middle of each of `frames` parts, or one drawn from each part in each epoch
    (the official `rand`)."""
    least_frames: PositiveInt | None = Field(default=None, exclude_if=_is_none)
    """With frame_sampling random: in each epoch a video's number of frames is drawn too, from this one to `frames`
    (official: 8 to 32). Their lines in the text change with it, so no gate that reads reference losses takes it."""
    samples: PositiveInt | None = None
    """How many samples the paper or the data card states; `plan` uses it while the files are not there."""
    targets_per_sample: PositiveFloat | None = None
    """Likewise, mean number of targets of a sample."""
    damaged: Literal["refuse", "exclude"] = "refuse"

    @model_validator(mode="after")
    def _drawn_frames(self) -> InternVLData:
        if self.least_frames is not None and self.frame_sampling != "random":
            raise ValueError("least_frames is for frame_sampling random")
        if self.least_frames is not None and self.least_frames > self.frames:
            raise ValueError(f"least_frames {self.least_frames} is more than frames {self.frames}")
        return self


SHAPES_VERSIONS: Final = {"shapes": 1, "shapes_2": 2}
"""Benchmark of the shapes -> the version of the set that it asks about."""

Data = Annotated[ShapesData | LlavaData | VideoChat2Data | InternVLData, Field(discriminator="source")]


__all__ = [
    "SHAPES_VERSIONS",
    "Annotation",
    "Data",
    "InternVLData",
    "LlavaData",
    "ShapesData",
    "Subset",
    "VideoChat2Data",
]
