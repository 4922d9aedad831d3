"""Conversations and pictures of VideoChat2: kinds, cutting, and what is refused. Ids are in the parity tests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from harness.common.errors import DataError
from harness.data.sample import Media, Sample, Turn
from harness.models.videochat2.image_processing import Pixels, tile_grid
from regate.types import Kind
from tests.harness.worlds.videochat2_fixture import Parity

if TYPE_CHECKING:
    from harness.models.videochat2.processor import VideoChat2Conversations

FIXTURE = Path(__file__).parents[3] / "fixtures" / "videochat2"
VIDEO = (Media("video", Path("clip.mp4")),)
QUESTION = "<media:0>\nWhat is the person doing?"


@pytest.fixture(scope="module")
def processor() -> VideoChat2Conversations:
    return Parity(FIXTURE).processor("video8", 2)


def sample(*turns: tuple[str, str], media: tuple[Media, ...] = VIDEO) -> Sample:
    roles: dict[str, Any] = {"s": "system", "u": "user", "a": "assistant"}
    return Sample(7, "bad", media, tuple(Turn(roles[role], text) for role, text in turns))


def said(processor: VideoChat2Conversations, one: Sample, kind: Kind) -> list[str]:
    """The runs of one kind, as text."""
    row = processor.encode(one, None)
    runs: list[list[int]] = []
    before = None
    for token, own in zip(row.input_ids_S.tolist(), row.kind_S.tolist(), strict=True):
        if own == kind:
            if before != kind:
                runs.append([])
            runs[-1].append(token)
        before = own
    return [processor.tokenizer.decode(run).strip() for run in runs]


def test_every_position_has_its_kind(processor: VideoChat2Conversations) -> None:
    talk = sample(("s", "Watch the video."), ("u", QUESTION), ("a", "running"), ("u", "Where?"), ("a", "to the left"))
    assert said(processor, talk, Kind.TARGET) == ["running </s>", "to the left </s>"]
    assert said(processor, talk, Kind.PROMPT) == ["Watch the video.", "What is the person doing?", "Where?"]
    marks = said(processor, talk, Kind.SPECIAL)
    assert marks == ["<s>", "[INST] <Video>", "</Video> [/INST] [INST]", "[/INST]", "[INST]", "[/INST]"]
    row = processor.encode(talk, None)
    assert int((row.kind_S == Kind.VISUAL).sum()) == processor.visual_tokens
    assert (row.input_ids_S[row.kind_S == Kind.VISUAL] == processor.placeholder_id).all()
    assert processor.placeholder_id == len(processor.tokenizer)


def test_empty_questions(processor: VideoChat2Conversations) -> None:
    """A caption has no question turn; answers without a question between them are learned together."""
    caption = sample(("u", "<media:0>"), ("a", "A dog."))
    assert said(processor, caption, Kind.SPECIAL) == ["<s> [INST] <Video>", "</Video> [/INST]"]
    assert said(processor, caption, Kind.PROMPT) == []
    two = sample(("u", QUESTION), ("a", "red"), ("u", ""), ("a", "green"))
    assert said(processor, two, Kind.TARGET) == ["red </s>  green </s>"]
    with pytest.raises(DataError, match="sample bad: it has no media and an empty question"):
        processor.check(sample(("u", ""), ("a", "b"), media=()))


def test_a_video_of_one_frame_is_told_as_an_image(processor: VideoChat2Conversations) -> None:
    still = replace(processor, frames=1)
    assert "<Image>" in said(still, sample(("u", QUESTION), ("a", "b")), Kind.SPECIAL)[0]


def test_words_alone(processor: VideoChat2Conversations) -> None:
    talk = sample(("s", "Be brief."), ("u", "What is a tree?"), ("a", "A plant."), media=())
    assert said(processor, talk, Kind.PROMPT) == ["Be brief.", "What is a tree?"]
    batch = processor.collate([processor.encode(talk, None)])
    assert set(batch.inputs) == {"input_ids", "attention_mask", "bos_as_ones"}


@pytest.mark.parametrize(
    ("one", "words"),
    [
        (sample(("u", QUESTION)), "1 turns; every question needs an answer"),
        (sample(("a", "b"), ("u", QUESTION)), "turn 0 is the assistant's"),
        (sample(("u", "no tag"), ("a", "b")), "1 media and 0 media tags"),
        (sample(("u", QUESTION), ("a", "b"), media=()), "0 media and 1 media tags"),
        (sample(("u", "<media:0><media:1>"), ("a", "b"), media=VIDEO * 2), "2 media and 2 media tags"),
        (sample(("u", "a"), ("a", "b"), ("u", QUESTION), ("a", "b")), "turn 2 holds <media:0>; only the first"),
        (sample(("u", QUESTION), ("a", "see </Video> there")), "a text holds </Video>"),
        (sample(("s", "</Video>"), ("u", QUESTION), ("a", "b")), "a text holds </Video>"),
        (sample(("s", "word " * 600), ("u", QUESTION), ("a", "b")), "leaves room for"),
    ],
)
def test_what_is_refused_names_the_sample(processor: VideoChat2Conversations, one: Sample, words: str) -> None:
    with pytest.raises(DataError, match=f"sample bad: .*{words}"):
        processor.encode(one, None)


def test_long_rows_are_cut_on_the_right_and_never_the_visual_tokens(processor: VideoChat2Conversations) -> None:
    long = sample(("u", QUESTION), ("a", "word " * 600))
    row = processor.encode(long, None)
    assert len(row.input_ids_S) == processor.max_length + processor.visual_tokens == 608
    assert processor.tokens(long) > processor.max_length
    assert int(row.labels_S[-1]) != processor.end_id
    lost = processor.encode(sample(("u", f"{QUESTION} {'word ' * 600}"), ("a", "b")), None)
    assert not (lost.kind_S == Kind.TARGET).any()
    with pytest.raises(DataError, match="sample bad: a question of"):
        processor.encode_prompt(sample(("u", f"{QUESTION} {'word ' * 600}")), None)


def test_a_prompt_is_the_row_up_to_its_answer(processor: VideoChat2Conversations) -> None:
    talk = sample(("s", "Watch."), ("u", QUESTION), ("a", "running"), ("u", "Where?"), ("a", "left"))
    row, prompt = processor.encode(talk, None), processor.encode_prompt(talk, None)
    assert torch.equal(prompt.input_ids_S, row.input_ids_S[: len(prompt.input_ids_S)])
    assert not (prompt.kind_S == Kind.TARGET).any()
    rest = row.input_ids_S[len(prompt.input_ids_S) :]
    assert processor.decode(rest.tolist()) == "left"
    assert int(rest[-1]) == processor.end_id
    quiet = processor.prompt(talk, None, opening="Best option:(", speak=False)
    assert torch.equal(quiet.extra["instruction_L"], row.extra["instruction_L"])
    assert "Watch" not in processor.tokenizer.decode([i for i in quiet.input_ids_S.tolist() if i < 190])


def test_the_first_row_is_ones_in_training_only_and_by_choice(processor: VideoChat2Conversations) -> None:
    talk = sample(("u", QUESTION), ("a", "b"))
    rows = [processor.encode(talk, None), processor.encode_prompt(talk, None)]
    assert processor.collate(rows).inputs["bos_as_ones"].tolist() == [True, False]
    plain = replace(processor, bos_as_ones=False)
    assert plain.collate([plain.encode(talk, None)]).inputs["bos_as_ones"].tolist() == [False]


def test_clips_that_do_not_fit(processor: VideoChat2Conversations) -> None:
    talk = sample(("u", QUESTION), ("a", "b"))
    for frames in ([torch.zeros(3, 3, 8, 8, dtype=torch.uint8)], [torch.zeros(2, 3, 8, 8)], []):
        with pytest.raises(DataError, match="sample bad: one uint8 clip of 2 frames expected"):
            processor.encode(talk, frames)
    clip = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match="a batch mixes rows with and without pixels"):
        processor.collate([processor.encode(talk, [clip]), processor.encode(talk, None)])


def test_the_middle_square_is_what_pil_makes() -> None:
    frames = torch.randint(0, 256, (2, 3, 50, 83), dtype=torch.uint8)
    ours = Pixels(size=32).clips(frames)
    picture = Image.fromarray(frames[1].permute(1, 2, 0).numpy()).resize((53, 32), Image.Resampling.BICUBIC)
    theirs = np.asarray(picture.crop((10, 0, 42, 32)))
    assert np.array_equal(ours[0, 1].permute(1, 2, 0).numpy(), theirs)
    same = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(Pixels(size=32).clips(same)[0], same)


def test_hd_tiles_are_the_picture_row_by_row_and_the_whole_last() -> None:
    assert tile_grid(64, 96, 32) == (2, 3)
    frames = torch.arange(64 * 96).view(1, 1, 64, 96).expand(1, 3, -1, -1).remainder(251).to(torch.uint8)
    pixels = Pixels(size=32, hd=True)
    clips = pixels.clips(frames)
    assert list(clips.shape) == [7, 1, 3, 32, 32]
    assert pixels.count(64, 96) == 7
    assert torch.equal(clips[0, 0], frames[0, :, :32, :32].float())
    assert torch.equal(clips[5, 0], frames[0, :, 32:, 64:].float())
    assert Pixels(size=32).count(64, 96) == 1


def test_colours() -> None:
    white = torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
    imagenet = Pixels(colours="imagenet").normalise(white)[0, :, 0, 0]
    torch.testing.assert_close(
        imagenet, torch.tensor([(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225])
    )
    assert not torch.equal(imagenet, Pixels(colours="clip").normalise(white)[0, :, 0, 0])
