"""transformers' own form of the processor: the official prompt, pixels and greedy tokens, saved and read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, SiglipImageProcessorPil

from harness.data.loading.video import read_frames
from harness.data.sample import Media
from harness.models.videollama2.hf_processor import VideoLLaMA2Processor
from tests.harness.worlds.videollama2_fixture import Parity

FIXTURE = Path(__file__).parents[3] / "fixtures" / "videollama2"
QUESTION = [{"role": "user", "content": "<video>\nWhat is happening in the video?"}]


@pytest.fixture(scope="module")
def parity() -> Parity:
    return Parity(FIXTURE)


@pytest.fixture(scope="module")
def processor(parity: Parity) -> VideoLLaMA2Processor:
    config = parity.model().config
    return VideoLLaMA2Processor(
        SiglipImageProcessorPil.from_pretrained(FIXTURE / config.mm_vision_tower),
        AutoTokenizer.from_pretrained(FIXTURE),
        num_frames=config.num_frames,
        visual_tokens=config.visual_tokens,
    )


def test_question_to_answer_as_the_official_inference(parity: Parity, processor: VideoLLaMA2Processor) -> None:
    frames = read_frames(Media("video", FIXTURE / "clip_a.mp4"), frames=processor.num_frames)
    prompt = processor.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True)
    assert prompt == parity.json("preprocess_expected.json")["prompts"]["infer"]
    inputs = processor(text=prompt, videos=[frames])
    seen = (parity.expected["infer.pixel_u8"].float() / 255 - 0.5) / 0.5
    assert (inputs["pixel_values"] - seen).abs().max() <= 1e-6
    new = parity.expected["infer.new_tokens"]
    made = parity.model().generate(**inputs, max_new_tokens=new.shape[1], do_sample=False)
    assert torch.equal(made[:, inputs["input_ids"].shape[1] :], new)
    told = processor.batch_decode(made)[0]
    assert told == prompt.replace("<video>", "") + processor.decode(new[0])


def test_it_is_saved_and_read(processor: VideoLLaMA2Processor, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path)
    again = VideoLLaMA2Processor.from_pretrained(tmp_path)
    clip = torch.randint(0, 256, (processor.num_frames, 3, 20, 30), dtype=torch.uint8)
    picture = torch.randint(0, 256, (3, 30, 20), dtype=torch.uint8)
    texts = ["<image>\nWhat?", "<video>\nThen?", "Nothing to see."]
    one, other = (made(text=texts, images=[picture], videos=[clip]) for made in (processor, again))
    assert one.keys() == other.keys()
    assert one["frame_counts"] == other["frame_counts"] == (1, processor.num_frames)
    for name in ("input_ids", "attention_mask", "pixel_values"):
        assert torch.equal(one[name], other[name]), name
    assert again.chat_template == processor.chat_template


def test_media_and_tags_must_match(processor: VideoLLaMA2Processor) -> None:
    clip = torch.zeros(processor.num_frames, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match="more <video> in the text than media"):
        processor(text="<video>\nWhat?")
    with pytest.raises(ValueError, match="more media than tags"):
        processor(text="What?", videos=[clip])
    with pytest.raises(ValueError, match=f"a video of 3 frames, not {processor.num_frames}"):
        processor(text="<video>", videos=[clip[:3]])
