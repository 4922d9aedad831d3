"""The scorer against sums worked out by hand, against a plain forward pass, and against transformers' generate."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from threading import Barrier
from typing import TYPE_CHECKING

import pytest
import torch
from transformers import GenerationConfig

from harness.common.errors import DataError, EnvironmentProblem, HarnessError, RecipeError
from harness.data.loading.video import read_frames
from harness.data.sample import Sample, Turn
from harness.evaluation.lmms.generation import Limits
from harness.evaluation.lmms.kept_features import KeptFeatures
from harness.evaluation.lmms.scorer import FrameCache, OptionLoss, Request, Scorer, chunked, clips_of
from harness.evaluation.multiple_choice import prompt
from harness.models.adapter import KeepsTower
from harness.models.device import evaluated_dtypes, hold_in
from harness.models.tiny.adapter import TinyAdapter
from harness.models.tiny.processor import TinyProcessor
from tests.harness.worlds import known_models as known
from tests.harness.worlds.evaluation import make_data

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from harness.data.sample import Media
    from harness.data.sources import DataSet
    from harness.models.tiny.model import TinyVLMForConditionalGeneration

COLOURS = {"<|assistant|>": {"it": 0.9}, "it": {"is": 0.8}, "is": {"red": 0.5, "blue": 0.2, "very": 0.25}}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small lose a hundredfold to threads that wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return make_data(tmp_path_factory.mktemp("world"))


def scorer(model: TinyVLMForConditionalGeneration, batch_size: int = 8) -> Scorer:
    frames = FrameCache(lambda media: read_frames(media, frames=known.FRAMES))
    return Scorer(known.KnownAdapter(), model, frames, batch_size)


def asks(data: DataSet) -> list[Request]:
    return [Request(q.key, q.media, prompt("options", q), q.options) for q in data.questions]


def losses_of(speaker: Scorer, wanted: Sequence[Request]) -> list[list[OptionLoss]]:
    """In the order of the items."""
    losses: dict[int, list[OptionLoss]] = {}
    for some in speaker.option_losses(chunked(wanted, speaker.batch_size)):
        losses |= some
    return [losses[i] for i in range(len(wanted))]


def answers_of(
    speaker: Scorer, wanted: Sequence[Request], most: int, until: tuple[str, ...] = ()
) -> list[tuple[str, int]]:
    """In the order of the items."""
    limited = [replace(request, options=(), limits=Limits(most, until)) for request in wanted]
    answers: dict[int, tuple[str, int]] = {}
    for some in speaker.answers(chunked(limited, speaker.batch_size)):
        answers |= some
    return [answers[i] for i in range(len(wanted))]


def test_the_loss_is_the_sum_worked_out_by_hand() -> None:
    model = known.bigram_model(COLOURS)
    request = Request("q", (), "What is it?", ("It is red.", "It is blue.", "It is very very green."))
    (losses,) = losses_of(scorer(model), [request])
    table_VV = known.log_table(known.processor(), COLOURS)
    for option, loss in zip(request.options, losses, strict=True):
        ids = [known.token(known.processor(), word) for word in known.words(option)]
        expected = -sum(float(table_VV[a, b]) for a, b in pairwise(ids))
        assert loss.loss == pytest.approx(expected, abs=1e-4)
        assert loss.tokens == len(ids) - 1
    assert not any(loss.greedy for loss in losses)


def test_greedy_tells_whether_every_word_is_the_likeliest() -> None:
    certain = {**COLOURS, "red": {".": 0.9}, "blue": {".": 0.9}, ".": {known.END: 0.9}}
    request = Request("q", (), "What?", ("It is blue.", "It is red."))
    (losses,) = losses_of(scorer(known.bigram_model(certain)), [request])
    assert [loss.greedy for loss in losses] == [False, True]


def oracle(model: TinyVLMForConditionalGeneration, request: Request) -> list[OptionLoss]:
    """One option at a time, all logits, torch's own cross entropy."""
    losses = []
    processor = known.processor()
    frames = [read_frames(media, frames=known.FRAMES) for media in request.media]
    for option in request.options:
        turns = (Turn("user", request.prompt), Turn("assistant", option))
        row = processor.encode(Sample(1, "k", request.media, turns), frames)
        batch = processor.collate([row])
        with torch.no_grad():
            logits_SV = model(**batch.model_inputs()).logits[0]
        loss_S = torch.nn.functional.cross_entropy(logits_SV[:-1], row.labels_S[1:], reduction="none")
        scored_S = row.labels_S[1:] != -100
        greedy = bool((logits_SV[:-1].argmax(-1) == row.labels_S[1:])[scored_S].all())
        losses.append(OptionLoss(float(loss_S[scored_S].sum()), int(scored_S.sum()), greedy))
    return losses


@pytest.mark.parametrize("rows", [1, 4, 64])
def test_batches_give_what_a_plain_forward_of_each_option_gives(data: DataSet, rows: int) -> None:
    model = known.random_model(3)
    wanted = asks(data)
    scored = losses_of(scorer(model, rows), wanted)
    for request, losses in zip(wanted, scored, strict=True):
        for ours, theirs in zip(losses, oracle(model, request), strict=True):
            assert ours.loss == pytest.approx(theirs.loss, abs=1e-4)
            assert (ours.tokens, ours.greedy) == (theirs.tokens, theirs.greedy)


def test_the_clip_is_seen(data: DataSet) -> None:
    model = known.random_model(3)
    same = [Request(q.key, q.media, "<media:0>\nWhat is it?", q.options) for q in data.questions[:3]]
    losses = [options[0].loss for options in losses_of(scorer(model), same)]
    assert len({round(loss, 3) for loss in losses}) == 3, "three clips, one text"


@pytest.fixture(params=["cache", "whole rows"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Generation with the model's cache, and as for a model without `generate`."""
    if request.param == "whole rows":
        monkeypatch.setattr("harness.evaluation.lmms.scorer.generates", lambda model: False)
    return str(request.param)


def test_generation_equals_that_of_transformers(data: DataSet, way: str) -> None:
    """Answers of a batch end at different steps; one at a time, transformers' own loop says the same."""
    model = known.random_model(26)
    processor = known.processor()
    wanted = asks(data)
    answers = answers_of(scorer(model, batch_size=5), wanted, 6)
    settings = {"max_new_tokens": 6, "do_sample": False, "suppress_tokens": [processor.placeholder_id]}
    for request, (text, tokens) in zip(wanted, answers, strict=True):
        frames = [read_frames(media, frames=known.FRAMES) for media in request.media]
        row = processor.encode_prompt(Sample(1, "k", request.media, (Turn("user", request.prompt),)), frames)
        batch = processor.collate([row])
        ids = model.generate(**batch.model_inputs(), **settings, eos_token_id=processor.end_id)
        new = [int(i) for i in ids[0, len(row.input_ids_S) :] if int(i) != processor.end_id]
        assert text == processor.decode(new)
        assert tokens == len(new)
    assert len({tokens for _, tokens in answers}) > 2


def test_prompts_of_different_lengths_are_written_together(data: DataSet, way: str) -> None:
    """Padding stands in front of a prompt then, and the answer is that of the prompt alone."""
    model = known.random_model(26)
    wanted = [
        Request(q.key, q.media, f"<media:0>\n{'What is it? ' * (1 + i % 4)}") for i, q in enumerate(data.questions)
    ]
    alone = [answers_of(scorer(model, batch_size=1), [request], 6)[0] for request in wanted]
    assert answers_of(scorer(model, batch_size=11), wanted, 6) == alone
    assert len(set(alone)) > 3


def test_the_settings_of_a_checkpoint_do_not_change_its_answers(data: DataSet) -> None:
    """Published models bring sampling and penalties in generation_config.json."""
    model = known.random_model(26)
    plain = answers_of(scorer(model), asks(data), 6)
    theirs = {"do_sample": True, "temperature": 9.0, "repetition_penalty": 3.0, "max_length": 3}
    model.generation_config = GenerationConfig(**theirs)
    assert answers_of(scorer(model), asks(data), 6) == plain
    assert model.generation_config.repetition_penalty == 3.0


def test_a_model_never_writes_the_token_that_stands_for_media(way: str) -> None:
    model = known.bigram_model({"<|assistant|>": {"<|video|>": 0.7, "b": 0.2}, "b": {known.END: 0.9}})
    request = Request("q", (), "What?")
    assert answers_of(scorer(model), [request], 9) == [("b", 1)]


def test_generation_stops_at_the_end_marker_and_at_until(way: str) -> None:
    follows = {"<|assistant|>": {"b": 0.9}, "b": {".": 0.9}, ".": {"red": 0.9}, "red": {known.END: 0.9}}
    speaker = scorer(known.bigram_model(follows))
    request = Request("q", (), "What?")
    assert answers_of(speaker, [request], 9) == [("b. red", 3)]
    assert answers_of(speaker, [request], 9, (". ",)) == [("b", 3)]
    assert answers_of(speaker, [request], 2) == [("b.", 2)]


class Dumb:
    """The `Processor` protocol and nothing more."""

    def __init__(self) -> None:
        full = known.processor()
        self.encode, self.collate, self.encode_prompt = full.encode, full.collate, full.encode_prompt


def test_a_processor_that_cannot_speak_says_so() -> None:
    speaker = scorer(known.random_model(0))
    speaker.processor = Dumb()
    with pytest.raises(RecipeError, match="no end_id and decode"):
        answers_of(speaker, [Request("q", (), "What?")], 2)


def test_options_without_targets_or_alike_to_the_tokenizer_are_named() -> None:
    speaker = scorer(known.random_model(0))
    with pytest.raises(HarnessError, match="question q7: two options are the same tokens"):
        losses_of(speaker, [Request("q7", (), "What?", ("It is red.", "it is RED ."))])

    class Truncating(TinyProcessor):
        def encode(self, sample: Sample, frames: object) -> object:  # type: ignore[override]
            row = super().encode(sample, None)
            row.labels_S.fill_(-100)
            return row

    plain = known.processor()
    speaker.processor = Truncating(plain.tokenizer, plain.frames, plain.size, plain.visual_tokens)
    with pytest.raises(HarnessError, match=r"question q8: option 'It is red.' has no target tokens"):
        losses_of(speaker, [Request("q8", (), "What?", ("It is red.", "It is blue."))])


def test_a_loss_that_is_not_finite_is_named() -> None:
    model = known.random_model(0)
    with torch.no_grad():
        model.get_output_embeddings().weight[known.token(known.processor(), "blue")] = float("nan")
    with pytest.raises(HarnessError, match=r"question q9: the loss of option .* is nan"):
        losses_of(scorer(model), [Request("q9", (), "What?", ("It is red.", "It is blue."))])


def test_a_damaged_clip_is_named(data: DataSet, tmp_path: Path) -> None:
    (tmp_path / "damaged.mp4").write_bytes(b"not a video")
    broken = replace(data.questions[0].media[0], path=tmp_path / "damaged.mp4")
    with pytest.raises(DataError, match=r"damaged\.mp4"):
        losses_of(scorer(known.random_model(0)), [Request("q", (broken,), "<media:0>", ("red", "blue"))])


def test_media_are_decoded_once_while_they_fit(data: DataSet) -> None:
    read: list[str] = []

    def counting(media: Media) -> torch.Tensor:
        read.append(media.path.name)
        return read_frames(media, frames=known.FRAMES)

    def run(cache: FrameCache) -> int:
        read.clear()
        for _ in range(2):
            losses_of(Scorer(known.KnownAdapter(), known.random_model(0), cache, 4), asks(data))
        return len(read)

    clip_bytes = 2 * 3 * 32 * 32
    assert run(FrameCache(counting)) == 3
    assert run(FrameCache(counting, max_bytes=clip_bytes)) == 3 + 2
    assert run(FrameCache(counting, max_bytes=0)) == 3 + 3, "once for the questions that stand together"


class KeepingAdapter(known.KnownAdapter):
    """Has, of the tiny model's own adapter, how its tower reads clips."""

    tower_features = TinyAdapter.tower_features


def test_a_frozen_tower_reads_a_clip_once_for_all_checkpoints_and_every_loss_is_the_same_to_the_bit(
    data: DataSet,
) -> None:
    adapter = KeepingAdapter()
    assert isinstance(adapter, KeepsTower)
    features, models = KeptFeatures(adapter), [known.random_model(0), known.random_model(0)]
    with torch.no_grad():
        models[1].model.projector.linear_1.weight.mul_(2)
    frames = FrameCache(lambda media: read_frames(media, frames=known.FRAMES))
    answers = []
    for model in models:
        plain, kept = (Scorer(adapter, model, frames, 8, features=each) for each in (None, features))
        answers.append(losses_of(kept, asks(data)))
        assert answers[-1] == losses_of(plain, asks(data))
        assert features.computed == 3
    assert answers[0] != answers[1]
    with torch.no_grad():
        next(models[1].model.vision_tower.parameters()).mul_(2)
    losses_of(Scorer(adapter, models[1], frames, 8, features=features), asks(data))
    assert features.computed == 6, "another tower"
    full = KeptFeatures(adapter, max_bytes=0)
    assert losses_of(Scorer(adapter, models[0], frames, 8, features=full), asks(data)) == answers[0]


def test_clips_are_decoded_side_by_side_and_each_once(data: DataSet) -> None:
    """Three threads wait for each other within the decoder, so one alone would never come out of it."""
    together, read = Barrier(3, timeout=60), []

    def waiting(media: Media) -> torch.Tensor:
        read.append(media.path.name)
        together.wait()
        return read_frames(media, frames=known.FRAMES)

    model, wanted = known.random_model(3), asks(data)
    for size in (1, 4, 1000):
        read.clear()
        side_by_side = Scorer(known.KnownAdapter(), model, FrameCache(waiting), size, readers=len(wanted))
        assert losses_of(side_by_side, wanted) == losses_of(scorer(model, size), wanted)
        assert sorted(read) == sorted({request.media[0].path.name for request in wanted})


def test_a_damaged_clip_ends_the_reading_of_those_behind_it(data: DataSet, tmp_path: Path) -> None:
    (tmp_path / "damaged.mp4").write_bytes(b"not a video")
    broken = replace(data.questions[0].media[0], path=tmp_path / "damaged.mp4", sha256="other")
    read: list[str] = []

    def counting(media: Media) -> torch.Tensor:
        read.append(media.path.name)
        return read_frames(media, frames=known.FRAMES)

    first, *others = asks(data)
    parts = [replace(request, media=(replace(request.media[0], start=i / 8),)) for i, request in enumerate(others)]
    asked = [replace(first, media=(broken,)), *parts]
    with pytest.raises(DataError, match=r"damaged\.mp4"):
        for _ in Scorer(known.KnownAdapter(), known.random_model(0), FrameCache(counting), readers=2).option_losses(
            [{i: request} for i, request in enumerate(asked)]
        ):
            pass
    assert len(read) < len(asked)


@pytest.mark.parametrize(
    ("precision", "expected"),
    [("auto", None), ("float32", None), ("bfloat16", torch.bfloat16), ("float16", torch.float16)],
)
def test_the_type_on_a_cpu_is_the_recipes(precision: str, expected: torch.dtype | None) -> None:
    cpu = torch.device("cpu")
    assert evaluated_dtypes("auto", precision, cpu) == (torch.float32, expected)
    assert evaluated_dtypes("float32", precision, cpu) == (torch.float32, expected)
    assert evaluated_dtypes("bfloat16", precision, cpu) == (torch.bfloat16, torch.bfloat16)


@pytest.mark.parametrize(
    ("asked", "precision", "weights", "computed"),
    [
        ("auto", "auto", torch.bfloat16, torch.bfloat16),
        ("auto", "bfloat16", torch.bfloat16, torch.bfloat16),
        ("auto", "float32", torch.float32, None),
        ("auto", "float16", torch.float32, torch.float16),
        ("float32", "auto", torch.float32, torch.bfloat16),
        ("bfloat16", "float32", torch.bfloat16, torch.bfloat16),
    ],
)
def test_the_types_on_a_gpu(
    asked: str, precision: str, weights: torch.dtype, computed: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert evaluated_dtypes(asked, precision, torch.device("cuda", 0)) == (weights, computed)


def test_a_gpu_without_bfloat16_holds_weights_in_float32_and_refuses_to_be_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "an older one")
    gpu = torch.device("cuda", 0)
    assert evaluated_dtypes("auto", "auto", gpu) == (torch.float32, None)
    with pytest.raises(EnvironmentProblem, match="an older one has no bfloat16"):
        evaluated_dtypes("bfloat16", "auto", gpu)


def test_weights_in_bfloat16_are_rounded_once_and_nothing_else_is(data: DataSet) -> None:
    """Losses are near those of the same rounded weights held in float32, and not equal: the residual stream of the
    one is bfloat16 too. Buffers, frequencies of positions among them, keep their bits."""
    buffers = dict(known.random_model(3).named_buffers())
    assert any(buffer.is_floating_point() for buffer in buffers.values())
    held = hold_in(known.random_model(3), torch.bfloat16)
    assert {parameter.dtype for parameter in held.parameters()} == {torch.bfloat16}
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in held.named_buffers())
    rounded = hold_in(hold_in(known.random_model(3), torch.bfloat16), torch.float32)
    losses = []
    for model in (held, rounded):
        speaker = scorer(model)  # type: ignore[arg-type]
        speaker.dtype = torch.bfloat16
        losses.append([option.loss for options in losses_of(speaker, asks(data)) for option in options])
    gaps = [abs(a - b) / b for a, b in zip(*losses, strict=True)]
    assert 0 < max(gaps) < 0.02


def test_half_precision_is_used_where_asked(data: DataSet) -> None:
    model = known.random_model(3)
    exact = losses_of(scorer(model), asks(data))
    half = scorer(model)
    half.dtype = torch.bfloat16
    rough = losses_of(half, asks(data))
    gaps = [abs(a.loss - b.loss) for x, y in zip(exact, rough, strict=True) for a, b in zip(x, y, strict=True)]
    assert 0 < max(gaps) < 2.0


def test_the_order_of_the_answers_is_that_of_the_questions(data: DataSet) -> None:
    model = known.random_model(3)
    wanted = asks(data)

    def keyed(order: Sequence[Request]) -> dict[str, list[float]]:
        by_request = zip(order, losses_of(scorer(model, 6), order), strict=True)
        return {request.key: [round(loss.loss, 3) for loss in losses] for request, losses in by_request}

    assert keyed(wanted) == keyed(wanted[::-1])


def test_questions_about_one_clip_are_asked_together_and_its_tower_pass_is_shared(data: DataSet) -> None:
    """Answers and losses are those of each item alone, in which nothing is shared."""
    model = known.random_model(3)
    first, second, *rest = {request.media: request for request in asks(data)}.values()
    longer = replace(first, key="longer", prompt=f"{first.prompt} {'Look again. ' * 4}")
    about_first = [first, longer]
    wanted = [about_first[0], second, *rest, about_first[1]]
    together = chunked(wanted, 1000)
    assert list(together[0])[:2] == [len(wanted) - 1, 0], "the longest item, and the one that asks for its clip"
    assert clips_of(together[0])[:3] == [0, 0, 1]
    assert len(set(clips_of(together[0]))) == len(wanted) - 1
    unlike = [replace(request, show=lambda: None) for request in about_first]  # type: ignore[arg-type,return-value]
    assert clips_of(dict(enumerate(unlike))) == [0, 1], "pictures that are no files are not compared"
    named = [replace(request, medium="one film") for request in unlike]
    assert clips_of(dict(enumerate(named))) == [0, 0], "but for those that the benchmark names"

    seen: list[int] = []
    inside = model.model.vision_tower.layers[0]
    handle = inside.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    shared, shared_losses = answers_of(scorer(model, 1000), wanted, 6), losses_of(scorer(model, 1000), wanted)
    frames = known.FRAMES * (len(wanted) - 1)
    assert seen == [frames, frames]
    handle.remove()
    alone = [answers_of(scorer(model, 1), [request], 6)[0] for request in wanted]
    assert shared == alone
    for request, losses in zip(wanted, shared_losses, strict=True):
        (separate,) = losses_of(scorer(model, 1), [request])
        assert [loss.loss for loss in losses] == pytest.approx([loss.loss for loss in separate], abs=1e-4)
