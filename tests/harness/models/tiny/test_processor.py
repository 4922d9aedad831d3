"""Layouts of the tiny model's processor: kinds, labels, ordinals, and the teacher's view."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.common.errors import DataError
from harness.data.sample import Encoded, Media, Sample, Turn
from harness.models.tiny.processor import MARKERS, TinyProcessor, normalise, train_tokenizer
from regate.types import IGNORE, Kind

P = 16
TEXTS = ("What colour is the square?", "The square is red, it seems.", "Where does it go?", "To the left.")
SAMPLE = Sample(
    id=7,
    key="seven",
    media=(Media("video", Path("seven.mp4")),),
    turns=(
        Turn("user", f"<media:0>\n{TEXTS[0]}"),
        Turn("assistant", TEXTS[1]),
        Turn("user", TEXTS[2]),
        Turn("assistant", TEXTS[3]),
    ),
    spans=((1, 14, 17, "colour"), (3, 7, 11, "direction")),
)


@pytest.fixture(scope="module")
def processor() -> TinyProcessor:
    return TinyProcessor(train_tokenizer(TEXTS), frames=8, size=64, visual_tokens=P)


def clip(value: int = 128) -> torch.Tensor:
    return torch.full((8, 3, 64, 64), value, dtype=torch.uint8)


def words(processor: TinyProcessor, ids: torch.Tensor) -> list[str]:
    tokens: list[str] = processor.tokenizer.convert_ids_to_tokens(ids.tolist())
    return tokens


def same_layout(a: Encoded, b: Encoded) -> bool:
    names = ("input_ids_S", "labels_S", "kind_S", "ordinal_S")
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in names)


def test_layout_of_a_conversation(processor: TinyProcessor) -> None:
    row = processor.encode(SAMPLE, [clip()])
    expected = [
        ("<|user|>", "S"),
        *[("<|video|>", "V")] * P,
        *[(word, "P") for word in ("what", "colour", "is", "the", "square", "?")],
        ("<|end|>", "S"),
        ("<|assistant|>", "S"),
        *[(word, "T") for word in ("the", "square", "is", "red", ",", "it", "seems", ".", "<|end|>")],
        ("<|user|>", "S"),
        *[(word, "P") for word in ("where", "does", "it", "go", "?")],
        ("<|end|>", "S"),
        ("<|assistant|>", "S"),
        *[(word, "T") for word in ("to", "the", "left", ".", "<|end|>")],
    ]
    letters = {Kind.SPECIAL: "S", Kind.VISUAL: "V", Kind.PROMPT: "P", Kind.TARGET: "T"}
    kinds = [letters[Kind(kind)] for kind in row.kind_S.tolist()]
    assert list(zip(words(processor, row.input_ids_S), kinds, strict=True)) == expected


def test_labels_are_the_answers_and_their_end_marks_in_canonical_order(processor: TinyProcessor) -> None:
    row = processor.encode(SAMPLE, None)
    target_S = row.kind_S == Kind.TARGET
    assert torch.equal(row.labels_S != IGNORE, target_S)
    assert torch.equal(row.labels_S[target_S], row.input_ids_S[target_S])
    assert row.ordinal_S[target_S].tolist() == list(range(14))
    assert bool((row.ordinal_S[~target_S] == -1).all())


def test_text_only_encoding_has_the_same_expanded_layout(processor: TinyProcessor) -> None:
    with_frames, text_only = processor.encode(SAMPLE, [clip()]), processor.encode(SAMPLE, None)
    assert same_layout(with_frames, text_only)
    assert with_frames.pixels is not None
    assert text_only.pixels is None


def test_prompt_is_the_conversation_up_to_the_last_answer(processor: TinyProcessor) -> None:
    row, prompt = processor.encode(SAMPLE, None), processor.encode_prompt(SAMPLE, None)
    size = len(prompt.input_ids_S)
    assert torch.equal(prompt.input_ids_S, row.input_ids_S[:size])
    assert words(processor, prompt.input_ids_S)[-1] == "<|assistant|>"
    assert bool((prompt.labels_S == IGNORE).all())
    assert Kind.TARGET not in prompt.kind_S.tolist()
    assert words(processor, row.input_ids_S[size:]) == ["to", "the", "left", ".", "<|end|>"]


def test_ordinary_chat_template_gives_the_same_ids(processor: TinyProcessor) -> None:
    messages = [
        {"role": turn.role, "content": turn.text.replace("<media:0>", "<|video|>" * P)} for turn in SAMPLE.turns
    ]
    ids = processor.tokenizer.apply_chat_template(messages, return_dict=False)
    assert ids == processor.encode(SAMPLE, None).input_ids_S.tolist()


def test_answer_survives_the_tokenizer(processor: TinyProcessor) -> None:
    row = processor.encode(SAMPLE, None)
    answer = row.input_ids_S[row.kind_S == Kind.TARGET][:8]
    assert processor.tokenizer.decode(answer) == "the square is red, it seems."


def test_words_of_the_corpus_are_whole_and_others_are_spelt(processor: TinyProcessor) -> None:
    unknown = processor.tokenizer.unk_token_id
    for text in TEXTS:
        assert not any("##" in token for token in processor.tokenizer.tokenize(text))
    spelt = processor.tokenizer.tokenize("An ox")
    assert spelt == ["a", "##n", "o", "##x"]
    assert unknown not in processor.tokenizer.convert_tokens_to_ids(spelt)


def test_a_character_that_cannot_be_written_stops_the_tokenizer_training() -> None:
    with pytest.raises(DataError, match="'caf\u00e9'"):
        train_tokenizer([*TEXTS, "a red café"])


def test_tokenizer_depends_on_the_corpus_not_on_its_order() -> None:
    one, two = train_tokenizer(TEXTS), train_tokenizer(reversed(TEXTS))
    assert one.backend_tokenizer.to_str() == two.backend_tokenizer.to_str()
    assert one.convert_tokens_to_ids(list(MARKERS)) == list(range(len(MARKERS)))


def test_markers_in_a_text_stay_text(processor: TinyProcessor) -> None:
    sneaky = Sample(1, "one", (), (Turn("user", "the <|end|> square"), Turn("assistant", "left")))
    row = processor.encode(sneaky, None)
    assert (row.input_ids_S == processor.end_id).sum() == 2
    assert processor.tokenizer.unk_token_id not in row.input_ids_S.tolist()


def test_saved_processor_is_the_same(processor: TinyProcessor, tmp_path: Path) -> None:
    processor.save(tmp_path)
    again = TinyProcessor.load(tmp_path)
    assert again.fingerprint == processor.fingerprint
    assert same_layout(again.encode(SAMPLE, None), processor.encode(SAMPLE, None))


def test_fingerprint_tells_what_changes_targets(processor: TinyProcessor) -> None:
    other = TinyProcessor(train_tokenizer([*TEXTS, "new"]), frames=8, size=64, visual_tokens=P)
    longer = dataclasses.replace(processor, visual_tokens=2 * P)
    assert len({processor.fingerprint, other.fingerprint, longer.fingerprint}) == 3


def test_span_classes_follow_the_targets(processor: TinyProcessor) -> None:
    classes = processor.span_classes(SAMPLE)
    row = processor.encode(SAMPLE, None)
    targets = words(processor, row.input_ids_S[row.kind_S == Kind.TARGET])
    assert len(classes) == len(targets)
    named = [(word, name) for word, name in zip(targets, classes, strict=True) if name]
    assert named == [("red", "colour"), ("left", "direction")]


def test_pixels_are_normalised_and_collated_in_row_order(processor: TinyProcessor) -> None:
    rows = [processor.encode(SAMPLE, [clip(value)]) for value in (0, 255)]
    text = processor.encode(dataclasses.replace(SAMPLE, media=(), turns=SAMPLE.turns[2:]), None)
    batch = processor.collate([rows[0], text, rows[1]])
    pixels = batch.model_inputs()["pixel_values"]
    assert pixels.shape == (2, 8, 3, 64, 64)
    assert pixels.dtype == torch.float32
    assert pixels[:, 0, 0, 0, 0].tolist() == [-1.0, 1.0]
    assert torch.equal(normalise(clip(255)), torch.ones(8, 3, 64, 64))


@given(st.lists(st.integers(0, 3), min_size=1, max_size=5))
def test_collate_pads_on_the_right_and_kinds_add_up(processor: TinyProcessor, cuts: list[int]) -> None:
    samples = [
        dataclasses.replace(SAMPLE, id=i, turns=(SAMPLE.turns[0], Turn("assistant", " ".join(TEXTS[:cut]))))
        for i, cut in enumerate(cuts)
    ]
    rows = [processor.encode(sample, None) for sample in samples]
    batch = processor.collate(rows)
    layout = batch.layout
    size = max(len(row.kind_S) for row in rows)
    assert layout.labels_BS.shape == (len(rows), size)
    assert batch.sample_ids_B.tolist() == list(range(len(rows)))
    assert "pixel_values" not in batch.inputs
    for i, row in enumerate(rows):
        n = len(row.kind_S)
        assert torch.equal(layout.kind_BS[i, :n], row.kind_S)
        assert torch.equal(batch.input_ids_BS[i, :n], row.input_ids_S)
        assert bool((layout.kind_BS[i, n:] == Kind.PAD).all())
        assert bool((layout.labels_BS[i, n:] == IGNORE).all())
        assert bool((layout.ordinal_BS[i, n:] == -1).all())
        assert bool((batch.input_ids_BS[i, n:] == processor.pad_id).all())
    assert torch.equal(batch.inputs["attention_mask"].bool(), layout.valid_BS)
    by_kind = [int((layout.kind_BS == kind).sum()) for kind in Kind]
    assert sum(by_kind) == layout.kind_BS.numel()


def test_a_failed_row_is_black_and_named(processor: TinyProcessor) -> None:
    good = processor.encode(SAMPLE, [clip()])
    failed = dataclasses.replace(processor.encode(dataclasses.replace(SAMPLE, id=9), None), failed=True)
    batch = processor.collate([good, failed])
    assert batch.failed == (9,)
    assert bool((batch.model_inputs()["pixel_values"][1] == -1).all())
    alone = processor.collate([failed])
    assert alone.inputs["pixel_values"].shape[0] == 1


def test_rows_with_and_without_pixels_do_not_mix(processor: TinyProcessor) -> None:
    with pytest.raises(ValueError, match=r"without: \[7\]"):
        processor.collate([processor.encode(SAMPLE, [clip()]), processor.encode(SAMPLE, None)])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"turns": (Turn("user", "what?"), Turn("assistant", "left"))}, "1 media and 0 media tags"),
        ({"turns": (Turn("user", "<media:1> what?"), Turn("assistant", "left"))}, "<media:1>, but it has 1"),
        ({"turns": (Turn("user", "what?"), Turn("assistant", "<media:0>"))}, "an answer holds <media:0>"),
        ({"turns": (Turn("user", "<media:0>"), Turn("assistant", "left " * 600))}, "more than 512"),
    ],
)
def test_wrong_samples_are_named(processor: TinyProcessor, changes: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=f"seven.*{message}"):
        processor.encode(dataclasses.replace(SAMPLE, **changes), None)


def test_a_clip_of_another_size_is_refused(processor: TinyProcessor) -> None:
    with pytest.raises(DataError, match=r"seven: one uint8 clip \(8, 3, 64, 64\) expected"):
        processor.encode(SAMPLE, [clip()[:4]])
