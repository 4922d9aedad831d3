"""Answers and scores of every family: as many questions at a time as one wants, the same text and losses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from harness.data.loading.video import read_frames
from harness.data.sample import Sample, Turn
from harness.evaluation.lmms.generation import Limits
from harness.evaluation.lmms.scorer import FrameCache, Request, Scorer, chunked
from tests.harness.worlds.transformers_models import PARAMS, made, recipe_of, samples

OPTIONS = ("It moves left.", "right", "It stands still, and is blue.")


@pytest.fixture(scope="module", params=PARAMS)
def adapter(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return made(recipe_of(tmp_path_factory.mktemp(request.param), request.param))


def requests_of(adapter: Any) -> list[Request]:
    """Videos, pictures and text alone, of different lengths."""
    video, picture = adapter.data.samples[0].media, samples(adapter)[1].media
    other = adapter.data.samples[1].media
    return [
        Request("a", video, "<media:0>\nWhat moves?"),
        Request("b", picture, "<media:0>\nWhat is it, and where does it go in the end?"),
        Request("c", (), "Why?"),
        Request("d", other, "<media:0>\nAnd this one, which has a longer question: what does it do?"),
        Request("e", picture, "<media:0>\nColour?"),
    ]


def scorer_of(adapter: Any, batch_size: int) -> Scorer:
    frames = FrameCache(lambda media: read_frames(media, frames=adapter.data.frames))
    return Scorer(adapter, adapter.student().double().eval(), frames, batch_size)


def test_a_batch_writes_what_one_question_at_a_time_writes(adapter: Any) -> None:
    asked = [replace(request, limits=Limits(6, ())) for request in requests_of(adapter)]
    texts = []
    for size in (1, 5):
        scorer = scorer_of(adapter, size)
        answers: dict[int, tuple[str, int]] = {}
        for some in scorer.answers(chunked(asked, size)):
            answers |= some
        texts.append([answers[place] for place in range(len(asked))])
    assert texts[0] == texts[1]
    assert len({text for text, _ in texts[0]}) > 1


def test_a_batch_scores_what_one_question_at_a_time_scores(adapter: Any) -> None:
    asked = [replace(request, options=OPTIONS) for request in requests_of(adapter)]
    losses = []
    for size in (1, 16):
        scorer = scorer_of(adapter, size)
        by_item: dict[int, Any] = {}
        for some in scorer.option_losses(chunked(asked, size)):
            by_item |= some
        losses.append([[option.loss for option in by_item[place]] for place in range(len(asked))])
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=1e-6, atol=1e-6)


def test_options_follow_the_very_question_that_is_asked(adapter: Any) -> None:
    """An option stands behind the tokens that a generated answer would follow: InternVL's evaluations number frames
    in another way than its training."""
    scorer = scorer_of(adapter, 4)
    (chunk,) = chunked([replace(requests_of(adapter)[0], options=OPTIONS)], 1)
    ((_, shown),) = scorer._read_ahead([chunk])
    (number,) = chunk
    asked = Sample(0, "asked", chunk[number].media, (Turn("user", chunk[number].prompt),))
    prompt = adapter.processor().encode_prompt(asked, shown[number].frames).input_ids_S
    for row in scorer._encode_options(chunk[number], shown[number]):
        assert row.input_ids_S[: len(prompt)].tolist() == prompt.tolist()


def test_no_id_that_stands_for_media_is_written(adapter: Any) -> None:
    """Pictures and videos may have one each."""
    media_ids = list(adapter.processor().visual_ids)
    scorer = scorer_of(adapter, 5)
    raised = torch.zeros(scorer.model.get_output_embeddings().weight.shape[0], dtype=torch.float64)
    raised[media_ids] = 1e3
    scorer.model.get_output_embeddings().register_forward_hook(lambda module, args, logits: logits + raised)
    asked = [replace(request, limits=Limits(6, ())) for request in requests_of(adapter)]
    plain = scorer_of(adapter, 5)
    for written, expected in zip(*(list(s.answers(chunked(asked, 5))) for s in (scorer, plain)), strict=True):
        assert written == expected
