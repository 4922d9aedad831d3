"""VideoChat2's processor in transformers' own form: the official demonstration without the harness."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from transformers import AutoTokenizer

from harness.models.videochat2.hf_processor import VideoChat2Processor
from harness.models.videochat2.weights import qformer_tokenizer
from tests.harness.worlds.videochat2_fixture import Parity

if TYPE_CHECKING:
    from typing import Any

FIXTURE = Path(__file__).parents[3] / "fixtures" / "videochat2"
ASK = "[INST] <Video></Video> [/INST] [INST] What is the person doing? [/INST]"


@pytest.fixture(scope="module")
def parity() -> Parity:
    return Parity(FIXTURE)


@pytest.fixture(scope="module")
def processor(parity: Parity) -> VideoChat2Processor:
    files = parity.files
    own = AutoTokenizer.from_pretrained(files.language_model)
    return VideoChat2Processor(own, qformer_tokenizer(files.qformer_tokenizer), placeholder_token_id=len(own))


def test_the_official_demonstration(parity: Parity, processor: VideoChat2Processor) -> None:
    own = parity.cases["infer"]
    text = own["prompt"].replace("<VideoHere>", "")
    inputs = processor(text=text, videos=parity.clips("infer"), instructions=own["instruction"])
    model: Any = parity.model()
    theirs = parity.tensors["infer.generated_ids"].long()
    with torch.no_grad():
        assert float((model(**inputs).logits - parity.tensors["infer.logits"]).abs().max()) <= 5e-4
        made = model.generate(**inputs, max_new_tokens=theirs.shape[1], do_sample=False)
    assert torch.equal(made[:, inputs["input_ids"].shape[1] :], theirs)
    assert processor.batch_decode(made, skip_special_tokens=True)[0].startswith("[INST] <Video> </Video> [/INST]")


def test_videos_pictures_and_words_in_one_batch(processor: VideoChat2Processor) -> None:
    video = torch.zeros(2, 3, 20, 30, dtype=torch.uint8)
    texts = [ASK.replace("Video", "Image"), "[INST] What is a tree? [/INST]", ASK]
    inputs = processor(images=[video[0]], text=texts, videos=[video], instructions=["Describe it.", "", ""])
    assert inputs["frame_counts"] == (1, 2)
    assert list(inputs["pixel_values"].shape) == [3, 3, 224, 224]
    visual = (inputs["input_ids"] == processor.placeholder_token_id).sum(dim=1)
    assert visual.tolist() == [96, 0, 96]
    assert inputs["qformer_attention_mask"][:, 0].tolist() == [1, 0], "the shorter instruction is padded in front"
    tiles = VideoChat2Processor(processor.tokenizer, processor.qformer_tokenizer, hd=True)
    wide = torch.zeros(2, 3, 224, 448, dtype=torch.uint8)
    assert len(tiles(text=ASK, videos=[wide])["frame_counts"]) == 3


def test_it_is_saved_and_read(processor: VideoChat2Processor, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path)
    again = VideoChat2Processor.from_pretrained(tmp_path)
    clip = torch.zeros(2, 3, 20, 30, dtype=torch.uint8)
    one, other = (made(text=ASK, videos=[clip], instructions="Watch.") for made in (processor, again))
    for name in ("input_ids", "pixel_values", "qformer_input_ids"):
        assert torch.equal(one[name], other[name]), name


@pytest.mark.parametrize(
    ("text", "videos", "words"),
    [(ASK, 0, "more <Video></Video> in the text than media"), ("[INST] a [/INST]", 1, "more media than marks"),
     (ASK + ASK, 2, "2 marks in a prompt")],
)  # fmt: skip
def test_marks_and_media_that_do_not_match(
    processor: VideoChat2Processor, text: str, videos: int, words: str
) -> None:
    clip = torch.zeros(2, 3, 20, 30, dtype=torch.uint8)
    with pytest.raises(ValueError, match=words):
        processor(text=text, videos=[clip] * videos)
    with pytest.raises(ValueError, match="2 instructions for 1 prompts"):
        processor(text=text, videos=[clip] * videos, instructions=["a", "b"])
