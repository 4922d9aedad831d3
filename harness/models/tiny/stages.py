"""The tiny model's own pre-training, stage by stage, as the real models went through it; `pretraining` has the loops.

(a) tower: the vision tower learns what is where (the counterpart of SigLIP), and is frozen from then on.
(b) backbone: the decoder learns to write the training answers without seeing; its frozen copy is the teacher.
(c) aligned: the projector learns to speak to the decoder on tag lists of other clips.

Legend: N clips, T frames, C channels, G cells along a side.
"""

from __future__ import annotations

import random
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config
from transformers.utils import logging as transformers_logging

from harness.common.errors import RecipeError
from harness.config.data import ShapesData
from harness.config.model import TinyModel
from harness.data.sample import Sample, Turn, sample_id
from harness.data.shapes import stage_clips
from harness.data.shapes.scene import COLOURS, MOTIONS, SHAPES
from harness.data.shapes.text import CONTACT, NUMBERS
from harness.models.artifacts import artifacts_of, hash_weights
from harness.models.tiny import pretraining as training
from harness.models.tiny.config import TinyTowerConfig, TinyVLMConfig
from harness.models.tiny.model import TinyTower, TinyVLMForConditionalGeneration, tower_parameters
from harness.models.tiny.processor import (
    END,
    PAD,
    ROLES,
    TEMPLATE,
    UNKNOWN,
    VIDEO,
    TinyProcessor,
    train_tokenizer,
)
from harness.models.tiny.sizes import INTERMEDIATE, visual_tokens

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedModel

    from harness.common.progress import Progress
    from harness.config.recipe import Recipe
    from harness.data.shapes import Clip
    from harness.data.shapes.scene import Scene, Thing
    from harness.data.sources import DataSet
    from harness.models.artifacts import ArtifactFolder

SCHEMA: Final = 1
STAGES: Final = ("tower", "backbone", "aligned")
TAG_WORDS: Final = (*COLOURS, *SHAPES, *MOTIONS, *NUMBERS, *CONTACT.values(), "turns", "later", "gone", ",")
"""What tag lists are written in; part of the vocabulary whether or not the conversations use them all."""
DISTRACTORS: Final = 8
"""Random words in the user's turn of a tag list, so that the projector's tokens must win over text."""


def stages_of(recipe: Recipe, data_fingerprint: str | None = None) -> ArtifactFolder:
    """Where the stages of a recipe's tiny model are."""
    return artifacts_of(recipe, "tiny", STAGES, schema=SCHEMA, data_fingerprint=data_fingerprint)


def make_stages(recipe: Recipe, data: DataSet, stages: ArtifactFolder, progress: Progress) -> None:
    """Make the stages that are not there yet, in order.

    Raises:
        RecipeError: the recipe's sizes do not fit each other or the data.
    """
    model, source = recipe.model, recipe.data
    if not isinstance(model, TinyModel) or not isinstance(source, ShapesData):
        raise RecipeError("model.adapter tiny is trained on data.source shapes: it needs their scenes")
    if model.tower.clips is None or model.align.clips is None or model.text.clips is not None:
        raise RecipeError("model.tower and model.align need a number of clips, and model.text sees none")
    clips = stage_clips(data.root, max(model.tower.clips, model.align.clips))
    seed = recipe.seed

    def tower(folder: Path) -> dict[str, Any]:
        return _tower(folder, model, clips[: model.tower.clips], source, seed, progress)

    def backbone(folder: Path) -> dict[str, Any]:
        decoder = None if model.decoder is None else Path(recipe.paths.weights) / model.decoder
        return _backbone(folder, model, data, source, seed, progress, decoder)

    def aligned(folder: Path) -> dict[str, Any]:
        return _aligned(folder, stages, model, clips[: model.align.clips], source, seed, progress)

    with quiet_transformers():
        stages.make("tower", tower)
        stages.make("backbone", backbone)
        stages.make("aligned", aligned)


def _tower(
    folder: Path, model: TinyModel, clips: tuple[Clip, ...], source: ShapesData, seed: int, progress: Progress
) -> dict[str, Any]:
    with progress.task("read clips for the vision tower", len(clips)) as advance:
        pixels_NTCHW = training.read_clips(clips, source.frames, advance)
    with (
        training.own_randomness(seed) as generator,
        progress.task("train the vision tower", model.tower.steps) as advance,
    ):
        tower = TinyTower(TinyTowerConfig(image_size=source.size))
        scenes = [clip.scene for clip in clips]
        figures = training.train_tower(tower, pixels_NTCHW, scenes, model.tower, generator, advance)
    tower.save_pretrained(folder)
    return figures


def _backbone(
    folder: Path,
    model: TinyModel,
    data: DataSet,
    source: ShapesData,
    seed: int,
    progress: Progress,
    decoder_folder: Path | None,
) -> dict[str, Any]:
    grid = TinyTowerConfig(image_size=source.size).grid
    if decoder_folder is not None:
        decoder, tokenizer = given_decoder(decoder_folder, seed)
    else:
        decoder, tokenizer = None, train_tokenizer(corpus(data))
    processor = TinyProcessor(
        tokenizer,
        frames=source.frames,
        size=source.size,
        visual_tokens=visual_tokens(source.frames, grid, model.frames_a_token, model.cells_a_token),
    )
    if decoder is not None and decoder_folder is not None:
        decoder.save_pretrained(folder)
        processor.save(folder)
        return {"vocabulary": processor.vocabulary, "decoder": hash_weights(decoder_folder)}
    rows = [processor.encode(sample, None) for sample in data.samples]
    with (
        training.own_randomness(seed) as generator,
        progress.task("train the text backbone", model.text.steps) as advance,
    ):
        decoder = AutoModelForCausalLM.from_config(decoder_config(model, processor), trust_remote_code=False)
        figures = training.train_backbone(decoder, rows, model.text, generator, advance)
    decoder.save_pretrained(folder)
    processor.save(folder)
    return {**figures, "vocabulary": processor.vocabulary}


def given_decoder(folder: Path, seed: int) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A causal LM of the user's, float32, and its tokenizer; both know the markers of the template, whose embeddings
    are drawn as the model draws its own.

    Raises:
        RecipeError: its embeddings and its head are not the same weights, as the whole model takes them to be.
    """
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, trust_remote_code=False)
    tokenizer.add_special_tokens({"pad_token": PAD, "unk_token": UNKNOWN, "eos_token": END})
    tokenizer.add_tokens([VIDEO, *ROLES.values()], special_tokens=True)
    tokenizer.chat_template = TEMPLATE
    tokenizer.padding_side = "right"
    decoder = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False)
    if not decoder.config.tie_word_embeddings:
        raise RecipeError(
            f"model.decoder {folder}: its head is not its embeddings (tie_word_embeddings: false)",
            hint="take a decoder that shares them, such as SmolLM2-135M",
        )
    with training.own_randomness(seed):
        decoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    decoder.config.pad_token_id, decoder.config.eos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id
    return decoder, tokenizer


def _aligned(
    folder: Path,
    stages: ArtifactFolder,
    model: TinyModel,
    clips: tuple[Clip, ...],
    source: ShapesData,
    seed: int,
    progress: Progress,
) -> dict[str, Any]:
    processor = TinyProcessor.load(stages.folder("backbone"))
    samples = tag_samples(clips, processor, seed)
    rows = [processor.encode(sample, None) for sample in samples]
    with training.own_randomness(seed) as generator:
        student = assemble(stages, processor, model)
        with progress.task("read clips for the projector", len(clips)) as advance:
            pixels_NTCHW = training.read_clips(clips, source.frames, advance)
        features_NTCGG = training.cell_features(student.model.vision_tower, pixels_NTCHW)
        with progress.task("align the projector", model.align.steps) as advance:
            figures = training.train_alignment(student, features_NTCGG, rows, model.align, generator, advance)
    student.save_pretrained(folder)
    processor.save(folder)
    return figures


def assemble(stages: ArtifactFolder, processor: TinyProcessor, model: TinyModel) -> TinyVLMForConditionalGeneration:
    """The whole model out of the tower and backbone checkpoints, with a new projector; the tower is frozen."""
    tower = TinyTower.from_pretrained(stages.folder("tower"))
    decoder = AutoModelForCausalLM.from_pretrained(stages.folder("backbone"), trust_remote_code=False)
    config = TinyVLMConfig(
        vision_config=tower.config.to_dict(),
        text_config=decoder.config.to_dict(),
        frames=processor.frames,
        frames_a_token=model.frames_a_token,
        cells_a_token=model.cells_a_token,
        placeholder_token_id=processor.placeholder_id,
        tie_word_embeddings=decoder.config.tie_word_embeddings,
        pad_token_id=processor.pad_id,
        eos_token_id=processor.end_id,
    )
    whole = TinyVLMForConditionalGeneration(config)
    whole.model.vision_tower.load_state_dict(tower.state_dict())
    whole.model.language_model.load_state_dict(decoder.model.state_dict())
    whole.lm_head.load_state_dict(decoder.lm_head.state_dict())
    for parameter in tower_parameters(whole):
        parameter.requires_grad_(False)
    return whole


def decoder_config(model: TinyModel, processor: TinyProcessor) -> Qwen2Config:
    """The decoder of the recipe's sizes, over the processor's vocabulary."""
    if model.hidden % (2 * model.heads):
        raise RecipeError(f"model.hidden {model.hidden} must be a multiple of 2 x heads ({2 * model.heads})")
    return Qwen2Config(
        vocab_size=processor.vocabulary,
        hidden_size=model.hidden,
        intermediate_size=INTERMEDIATE * model.hidden,
        num_hidden_layers=model.layers,
        num_attention_heads=model.heads,
        num_key_value_heads=model.heads,
        max_position_embeddings=processor.max_length,
        tie_word_embeddings=True,
        initializer_range=model.hidden**-0.5,  # Qwen2's 0.02 is for wide models: attention starts too flat here
        pad_token_id=processor.pad_id,
        eos_token_id=processor.end_id,
        bos_token_id=None,
    )


def corpus(data: DataSet) -> Iterator[str]:
    """Every text that the model will meet: conversations, questions and their options, tag words."""
    for sample in data.samples:
        yield from (turn.text for turn in sample.turns)
    for question in data.questions:
        yield question.text
        yield from question.options
    yield " ".join(TAG_WORDS)


def tags(scene: Scene, *, by_colour: bool) -> str:
    """A clip in key words, objects in a fixed order: what the projector learns to say first.

    An object's colour leads to its shape or its shape to its colour: the decoder must find objects by either.
    """
    tag_list = []
    for thing in sorted(scene.things, key=lambda thing: _rank(thing, by_colour=by_colour)):
        colour = thing.colour[0] if thing.steady else f"{thing.colour[0]} turns {thing.colour[-1]}"
        words = [colour, thing.shape] if by_colour else [thing.shape, colour]
        if scene.kind != "collide":
            words.append(thing.motion)
        if not thing.visible[0]:
            words.append("later")
        if not thing.visible[-1]:
            words.append("gone")
        tag_list.append(" ".join(words))
    count = [NUMBERS[len(scene.things)]]
    contact = [CONTACT[scene.hit]] if scene.hit is not None else []
    return ", ".join(count + tag_list + contact)


def _rank(thing: Thing, *, by_colour: bool) -> int:
    return COLOURS.index(thing.colour[0]) if by_colour else SHAPES.index(thing.shape)


def tag_samples(clips: tuple[Clip, ...], processor: TinyProcessor, seed: int) -> list[Sample]:
    """Tag lists as conversations; the user's turn is the clip and a few random words of the vocabulary."""
    vocabulary = processor.tokenizer.get_vocab()
    known = sorted(word for word in vocabulary if word.isascii() and word.isalpha() and len(word) > 1)
    samples = []
    for index, clip in enumerate(clips):
        rng = random.Random(f"tags/{seed}/{index}")
        words = " ".join(rng.choices(known, k=DISTRACTORS))
        user = f"<media:0>\n{words}" if rng.random() < 0.5 else f"{words}\n<media:0>"
        turns = (Turn("user", user), Turn("assistant", tags(clip.scene, by_colour=rng.random() < 0.5)))
        media = (training.media_of(clip),)
        samples.append(Sample(sample_id("shapes/stage", str(index)), f"stage/{index}", media, turns))
    return samples


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without transformers' own progress bars while checkpoints are read and written."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
