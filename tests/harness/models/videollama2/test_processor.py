"""The processor makes the official ids, labels, masks and pixels, and refuses what it cannot do."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, CLIPImageProcessorPil

from harness.common.errors import DataError, EnvironmentProblem
from harness.data.formats import Row, read_llava
from harness.data.loading.frames import bounds, spread
from harness.data.loading.video import read_frames
from harness.data.sample import Media, Sample, Turn, sample_id
from harness.models.videollama2.config import VideoLLaMA2Config
from harness.models.videollama2.image_processing import Pixels, read_pixels
from harness.models.videollama2.processor import VideoLLaMA2Conversations
from regate.types import Kind
from tests.harness.worlds.videollama2_fixture import Parity


@pytest.fixture(scope="module")
def parity(parity_root: Path) -> Parity:
    return Parity(parity_root)


@pytest.fixture(scope="module")
def config(parity: Parity) -> VideoLLaMA2Config:
    return VideoLLaMA2Config.from_pretrained(parity.root)


@pytest.fixture(scope="module")
def processor(parity: Parity, config: VideoLLaMA2Config) -> VideoLLaMA2Conversations:
    return VideoLLaMA2Conversations(
        AutoTokenizer.from_pretrained(parity.root),
        read_pixels(parity.root / parity.config["mm_vision_tower"], "pad"),
        config.num_frames,
        config.visual_tokens,
        config.tokenizer_model_max_length,
    )


@pytest.fixture(scope="module")
def samples(parity: Parity) -> list[Sample]:
    made = []
    for row in read_llava(parity.root / "data.json", lambda name: name):
        assert isinstance(row, Row)
        media = tuple(Media(file.kind, parity.root / file.name) for file in row.media)
        made.append(Sample(sample_id("fixture", row.key), row.key, media, row.turns))
    return made


def frames_of(sample: Sample, frames: int) -> list[torch.Tensor]:
    return [read_frames(media, frames=frames) for media in sample.media]


def talk(*texts: str, media: bool = False, key: str = "s") -> Sample:
    turns = tuple(Turn(("user", "assistant")[i % 2], text) for i, text in enumerate(texts))  # type: ignore[arg-type]
    return Sample(7, key, (Media("video", Path("clip.mp4")),) if media else (), turns)


def test_ids_labels_and_masks_are_the_official_ones(
    parity: Parity, processor: VideoLLaMA2Conversations, samples: list[Sample], config: VideoLLaMA2Config
) -> None:
    rows = [processor.encode(sample, frames_of(sample, config.num_frames)) for sample in samples]
    for number, row in enumerate(rows):
        ids, labels = parity.text(number)
        wide = [[i for t, v in zip(ids, values, strict=True) for i in [v] * (processor.visual_tokens if t < 0 else 1)]
                for values in (ids, labels)]  # fmt: skip
        ours = [processor.placeholder_id if token < 0 else token for token in wide[0]]
        assert row.input_ids_S.tolist() == ours
        assert row.labels_S.tolist() == wide[1]
    batch = processor.collate(rows)
    assert torch.equal(batch.layout.labels_BS, parity.expected["merged.labels"])
    assert torch.equal(batch.inputs["attention_mask"].bool(), parity.expected["merged.attention_mask"].bool())
    assert processor.placeholder_id not in {token for ids in parity.inputs["input_ids"].tolist() for token in ids}


def test_pixels_are_the_official_ones_bit_for_bit(
    parity: Parity, processor: VideoLLaMA2Conversations, samples: list[Sample], config: VideoLLaMA2Config
) -> None:
    rows = [processor.encode(sample, frames_of(sample, config.num_frames)) for sample in samples]
    batch = processor.collate(rows)
    with_media = [row for row, sample in enumerate(samples) if sample.media]
    assert batch.inputs["pixel_values"].dtype == torch.uint8
    assert torch.equal(batch.model_inputs()["pixel_values"], torch.cat([parity.pixels(row) for row in with_media]))
    assert batch.inputs["frame_counts"] == tuple(len(parity.pixels(row)) for row in with_media)


def test_the_inference_prompt_and_its_squashed_pixels(
    parity: Parity, processor: VideoLLaMA2Conversations, samples: list[Sample], config: VideoLLaMA2Config
) -> None:
    squash = replace(processor, pixels=replace(processor.pixels, aspect="square"))
    row = squash.encode_prompt(samples[0], frames_of(samples[0], config.num_frames))
    assert row.pixels is not None
    assert torch.equal(row.pixels, parity.expected["infer.pixel_u8"])
    ids = parity.expected["infer.input_ids"][0].tolist()
    place = next(i for i, token in enumerate(ids) if token < 0)
    ids[place : place + 1] = [processor.placeholder_id] * processor.visual_tokens
    assert row.input_ids_S.tolist() == ids
    assert not (row.labels_S != -100).any()
    prompts = parity.json("preprocess_expected.json")["prompts"]
    before, after = prompts["infer"].split("<video>")
    tokens = processor.tokenizer
    spoken = [token for token in row.input_ids_S.tolist() if token != processor.placeholder_id]
    assert tokens.decode(spoken, clean_up_tokenization_spaces=False) == before + after


def test_the_model_computes_the_official_loss_on_what_the_processor_makes(
    parity: Parity, processor: VideoLLaMA2Conversations, samples: list[Sample], config: VideoLLaMA2Config
) -> None:
    model = parity.model()
    model.config.placeholder_token_id = model.model.config.placeholder_token_id = processor.placeholder_id
    batch = processor.collate([processor.encode(s, frames_of(s, config.num_frames)) for s in samples])
    with torch.no_grad():
        loss = model(**batch.model_inputs(), labels=batch.layout.labels_BS).loss
    assert abs(loss.item() - float(parity.expected["loss"])) <= 1e-5


def test_frame_indices(parity: Parity) -> None:
    expected = parity.json("preprocess_expected.json")
    for duration, frames, indices in expected["frame_sample_uniform"]:
        assert spread(duration, frames) == indices
    for start, end, fps, total, indices in expected["bounds"]:
        first, last = bounds(total, fps, start, end)
        assert [first + index for index in spread(last - first + 1, len(indices))] == indices


def test_kinds_tell_question_template_media_and_target(
    processor: VideoLLaMA2Conversations, samples: list[Sample]
) -> None:
    """Each kind's tokens, put together, are the words of that kind."""
    sample = samples[-1]
    row = processor.encode(sample, None)
    assert row.pixels is None
    words = {kind: row.input_ids_S[row.kind_S == kind].tolist() for kind in Kind}
    assert len(words[Kind.VISUAL]) == processor.visual_tokens
    told = {kind: processor.tokenizer.decode(words[kind], clean_up_tokenization_spaces=False) for kind in (1, 3, 4)}
    user = [turn.text.replace("<media:0>", "").strip() for turn in sample.turns if turn.role == "user"]
    answers = [f"{turn.text}<|im_end|>\n" for turn in sample.turns if turn.role == "assistant"]
    assert told[Kind.PROMPT] == "".join(user)
    assert told[Kind.TARGET] == "".join(answers)
    assert told[Kind.SPECIAL].startswith("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n")
    assert row.ordinal_S[row.kind_S == Kind.TARGET].tolist() == list(range(len(words[Kind.TARGET])))
    assert (row.ordinal_S[row.kind_S != Kind.TARGET] == -1).all()


def test_a_question_that_stands_in_the_template_too(processor: VideoLLaMA2Conversations) -> None:
    row = processor.encode(talk("You are a helpful assistant.", "assistant"), None)
    told = processor.tokenizer.decode(row.input_ids_S[row.kind_S == Kind.PROMPT].tolist())
    assert told == "You are a helpful assistant."
    system = Sample(1, "s", (), (Turn("system", "Be brief."), Turn("user", "Who?"), Turn("assistant", "Me.")))
    row = processor.encode(system, None)
    assert "Be brief.Who?" in processor.tokenizer.decode(row.input_ids_S[row.kind_S == Kind.PROMPT].tolist())


def test_text_without_media_and_text_only_encodings(
    processor: VideoLLaMA2Conversations, samples: list[Sample]
) -> None:
    batch = processor.collate([processor.encode(sample, None) for sample in samples])
    assert "pixel_values" not in batch.inputs
    words = processor.collate([processor.encode(talk("Name one.", "One."), [])])
    assert "pixel_values" not in words.inputs
    clip = torch.zeros(processor.frames, 3, 8, 8, dtype=torch.uint8)
    row = processor.encode(talk("<media:0> a", "b", media=True), [clip])
    with pytest.raises(ValueError, match="mixes rows with and without"):
        processor.collate([row, processor.encode(talk("<media:0> a", "b", media=True), None)])


def test_cutting_keeps_the_media_and_says_what_it_cannot_do(processor: VideoLLaMA2Conversations) -> None:
    sample = talk("<media:0>\nWhat?", "word " * 50, media=True, key="long one")
    whole = processor.encode(sample, None)
    length = processor.tokens(sample)
    assert length == len(whole.input_ids_S) - processor.visual_tokens + 1
    cut = replace(processor, max_length=length - 20).encode(sample, None)
    assert torch.equal(cut.input_ids_S, whole.input_ids_S[:-20])
    assert torch.equal(cut.labels_S, whole.labels_S[:-20])
    assert whole.cut is None
    assert cut.cut == int((whole.labels_S[-20:] != -100).sum()) > 0
    assert processor.collate([whole, cut, cut]).cut == (cut.cut, cut.cut)
    asked = len(processor.encode_prompt(sample, None).input_ids_S) - processor.visual_tokens + 1
    with pytest.raises(DataError, match=rf"sample long one: \d+ tokens, more than max_length {asked}, and no target"):
        replace(processor, max_length=asked).encode(sample, None)
    late = talk("word " * 50, "yes", "<media:0> and here?", "no", media=True, key="late one")
    short = replace(processor, max_length=processor.tokens(talk("word " * 50, "yes")))
    with pytest.raises(DataError, match=r"sample late one: .* its media stands beyond"):
        short.encode(late, None)
    with pytest.raises(DataError, match="sample late one: a question of"):
        short.encode_prompt(late, None)


@pytest.mark.parametrize(
    ("sample", "words"),
    [
        (talk("a", "b", "c", key="k"), "sample k: 3 turns; every question needs an answer"),
        (talk(key="k"), "sample k: 0 turns"),
        (talk("a", "b", media=True, key="k"), "sample k: 1 media and 0 media tags"),
        (talk("<media:0>", "b", key="k"), "sample k: 0 media and 1 media tags"),
        (talk("<media:0> a <media:0>", "b", media=True, key="k"), "sample k: 1 media and 2 media tags"),
        (talk("a", "<media:0>", media=True, key="k"), "sample k: an answer holds <media:0>"),
        (Sample(1, "k", (), (Turn("user", "a"), Turn("user", "b"))), "sample k: turn 1 is the user's"),
    ],
)
def test_conversations_that_are_refused(processor: VideoLLaMA2Conversations, sample: Sample, words: str) -> None:
    with pytest.raises(DataError, match=words):
        processor.encode(sample, None)


def test_clips_that_are_refused(processor: VideoLLaMA2Conversations) -> None:
    sample = talk("<media:0> a", "b", media=True, key="k")
    for wrong in ((3, 3, 8, 8), (processor.frames, 1, 8, 8)):
        with pytest.raises(DataError, match=f"sample k: one uint8 clip of {processor.frames} frames"):
            processor.encode(sample, [torch.zeros(wrong, dtype=torch.uint8)])


def test_the_fingerprint_follows_what_decides_the_rows(processor: VideoLLaMA2Conversations) -> None:
    others = [
        replace(processor, max_length=100),
        replace(processor, visual_tokens=7),
        replace(processor, pixels=replace(processor.pixels, aspect="square")),
    ]
    prints = {made.fingerprint for made in (processor, *others)}
    assert len(prints) == 4
    assert replace(processor).fingerprint == processor.fingerprint


def test_clips_own_way_of_resizing_is_transformers_own() -> None:
    """CLIP in the official inference: the short side to the tower's size, and the middle."""
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    theirs: Any = CLIPImageProcessorPil(size={"shortest_edge": 20}, crop_size={"height": 20, "width": 20})
    noise = np.random.default_rng(0)
    for height, width in ((31, 47), (50, 24), (20, 20)):
        image = noise.integers(0, 256, (height, width, 3), dtype=np.uint8)
        pixels = Pixels(20, mean, std, "square", crop=True)
        ours = pixels.normalise(pixels.squares(torch.from_numpy(image).permute(2, 0, 1)[None]))
        expected = theirs(Image.fromarray(image), return_tensors="pt")["pixel_values"]
        assert (ours - expected).abs().max() <= 1e-6, (height, width)


def test_settings_of_the_tower_that_are_not_done_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match=r"preprocessor_config\.json: not there"):
        read_pixels(tmp_path, "pad")
    (tmp_path / "preprocessor_config.json").write_text('{"size": {"height": 8, "width": 8}, "resample": 2}')
    with pytest.raises(EnvironmentProblem, match="resample is 2"):
        read_pixels(tmp_path, "pad")


def test_mistrals_template(processor: VideoLLaMA2Conversations) -> None:
    """VideoLLaMA2.0: no system turn, no marker that opens an answer; targets are the answer and its end marker."""
    tokenizer = copy.deepcopy(processor.tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content | trim }} [/INST]"
        "{% else %} {{ m.content | trim }}<|im_end|>{% endif %}{% endfor %}"
    )
    mistral = replace(processor, tokenizer=tokenizer)
    sample = talk("What? <media:0>", "A dog.", "And now?", "It runs.", media=True)
    row = mistral.encode(sample, None)
    told = {kind: tokenizer.decode(row.input_ids_S[row.kind_S == kind].tolist()) for kind in (1, 3, 4)}
    assert told[Kind.TARGET] == " A dog.<|im_end|> It runs.<|im_end|>"
    assert told[Kind.PROMPT].split() == ["What?And", "now?"]
    assert told[Kind.SPECIAL].replace(" ", "").replace("\n", "") == "[INST][/INST][INST][/INST]"
    prompt = mistral.encode_prompt(sample, None)
    assert torch.equal(prompt.input_ids_S, row.input_ids_S[: len(prompt.input_ids_S)])
    assert mistral.fingerprint != processor.fingerprint
