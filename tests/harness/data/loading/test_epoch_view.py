"""A sample as an epoch shows it: drawn from seed, epoch and id alone, with the targets and ordinals of the file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoTokenizer

import regate
from harness.data.formats import File, Row
from harness.data.loading.batches import load, text_batches, windows
from harness.data.loading.epoch_view import EpochView, arranged, encode, order_of
from harness.data.media_folders import MediaFolders
from harness.data.packed import PackedSamples, Rows
from harness.data.sample import Sample, SamplingPolicy, Turn
from harness.data.sampler import Sampler
from harness.data.sources import DataSet
from harness.models.tiny.processor import TinyProcessor, train_tokenizer
from harness.models.videollama2.config import VideoLLaMA2Config
from harness.models.videollama2.image_processing import read_pixels
from harness.models.videollama2.processor import VideoLLaMA2Conversations
from regate.types import Kind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from harness.data.sample import Encoded

SHUFFLED = SamplingPolicy(rule="random", shuffle_turns=True, augment=True)
WORDS = ["red", "a dog runs", "it is blue and green", "two", "left of the tree then gone", "x"]


def _row(number: int, pairs: int, *, captions: bool = False, instructions: bool = True) -> Row:
    turns: list[Turn] = []
    openings = tuple(f"watch closely {place}" if instructions else "watch" for place in range(pairs))
    for place in range(pairs):
        question = "" if captions else f"what {number} {place}"
        lead = "<media:0>\n" if question else "<media:0>"
        answer = f"{WORDS[(number + place) % len(WORDS)]} {number} {place}"
        turns += [Turn("user", f"{lead if place == 0 else ''}{question}"), Turn("assistant", answer)]
    several = openings if instructions and pairs > 1 else ()
    return Row(
        f"r{number}", (File("video", f"{number}.mp4"),), (Turn("system", openings[0]), *turns), openings=several
    )


def _dataset(
    rows: Sequence[Row], sampling: SamplingPolicy = SHUFFLED, root: Path = Path("nowhere"), **more: Any
) -> DataSet:
    packed = Rows("test")
    for row in rows:
        packed.add(row)
    samples = PackedSamples(MediaFolders(root), packed)
    return DataSet("test", root, samples, (), (), "fingerprint", frames=4, sampling=sampling, **more)


DATA = _dataset([_row(number, number % 6 + 1, instructions=number % 2 == 0) for number in range(40)])


@pytest.fixture(scope="module")
def processor() -> TinyProcessor:
    tokenizer = train_tokenizer(turn.text for sample in DATA.samples for turn in sample.turns)
    return TinyProcessor(tokenizer, frames=4, size=224, visual_tokens=4)


class Quiet:
    """A processor that leaves out empty questions, as VideoChat2's does: answers then follow each other."""

    def __init__(self, inner: TinyProcessor) -> None:
        self.inner = inner

    def encode(self, sample: Sample, frames: Sequence[Tensor] | None) -> Encoded:
        """The tag goes into the system turn, and an answer gives up its role marker: nothing stands between two."""
        turns = [Turn("system", "<media:0>"), *(turn for turn in sample.turns if turn.text not in ("", "<media:0>"))]
        row = self.inner.encode(replace(sample, turns=tuple(turns)), frames)
        opens = {self.inner.tokenizer.convert_tokens_to_ids("<|assistant|>")}
        keep_S = torch.tensor([int(token) not in opens for token in row.input_ids_S])
        named = {name: getattr(row, name)[keep_S] for name in ("input_ids_S", "labels_S", "kind_S", "ordinal_S")}
        return replace(row, **named)


def _targets(row: Encoded) -> list[int]:
    """Target ids in canonical order."""
    mask_S = row.kind_S == Kind.TARGET
    return row.labels_S[mask_S][row.ordinal_S[mask_S].argsort()].tolist()


# --- which order -----------------------------------------------------------------------------------------


def test_the_order_is_drawn_from_seed_epoch_and_id_alone() -> None:
    big = [sample for sample in DATA.samples if len(sample.turns) > 9]
    views = [EpochView(seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    orders = [tuple(order_of(s, SHUFFLED, view) for s in big) for view in views]
    assert len(set(orders)) == 4
    assert orders[0] == tuple(order_of(s, SHUFFLED, EpochView(0, 0)) for s in big)
    assert len(set(orders[0])) > 3, "samples are not all shuffled alike"
    assert all(sorted(order) == list(range(len(order))) for order in orders[0])
    assert order_of(big[0], SamplingPolicy(), EpochView(0, 0)) == ()


def test_the_tag_and_the_instruction_go_with_the_first_question() -> None:
    """VideoChat2's loader shuffles first and then takes the instruction of the pair that stands first."""
    sample = next(sample for sample in DATA.samples if sample.key == "r2")
    assert [turn.text for turn in sample.turns[:3]] == ["watch closely 0", "<media:0>\nwhat 2 0", f"{WORDS[2]} 2 0"]
    shown = arranged(sample, (2, 0, 1))
    assert [turn.text for turn in shown.turns] == [
        "watch closely 2",
        "<media:0>\nwhat 2 2",
        f"{WORDS[4]} 2 2",
        "what 2 0",
        f"{WORDS[2]} 2 0",
        "what 2 1",
        f"{WORDS[3]} 2 1",
    ]
    assert arranged(shown, (1, 2, 0)) == sample
    one = next(sample for sample in DATA.samples if sample.key == "r3")
    assert not one.openings
    assert arranged(one, (3, 2, 1, 0)).turns[0] == one.turns[0]


def test_a_pair_without_an_instruction_or_a_question_may_stand_first() -> None:
    turns = (Turn("user", "<media:0>"), Turn("assistant", "A"), Turn("user", "Q"), Turn("assistant", "B"))
    sample = Sample(1, "k", (), turns, openings=("", "Watch."))
    shown = arranged(sample, (1, 0))
    assert [turn.text for turn in shown.turns] == ["Watch.", "<media:0>\nQ", "B", "", "A"]
    assert arranged(shown, (1, 0)) == sample


# --- the ordinals of the file ----------------------------------------------------------------------------


@settings(deadline=None)
@given(number=st.integers(0, 39), seed=st.integers(0, 2**32), epoch=st.integers(0, 5))
def test_every_order_shows_the_files_targets_under_their_ordinals(
    processor: TinyProcessor, number: int, seed: int, epoch: int
) -> None:
    sample = DATA.samples[number]
    order = order_of(sample, SHUFFLED, EpochView(seed, epoch))
    row = encode(sample, order, processor, None)
    filed = processor.encode(sample, None)
    assert not row.unshuffled
    assert _targets(row) == _targets(filed)
    told = row.input_ids_S.tolist() == filed.input_ids_S.tolist()
    assert told == (list(order) == sorted(order)), "another order is another text"


@settings(deadline=None)
@given(order=st.permutations(range(4)))
def test_answers_that_follow_each_other_keep_their_ordinals(processor: TinyProcessor, order: list[int]) -> None:
    data = _dataset([_row(7, 4, captions=True)])
    quiet: Any = Quiet(processor)
    row = encode(data.samples[0], order, quiet, None)
    assert not row.unshuffled
    assert _targets(row) == _targets(quiet.encode(data.samples[0], None))
    ordinals = row.ordinal_S[row.ordinal_S >= 0].tolist()
    assert (ordinals == sorted(ordinals)) == (order == sorted(order))


def test_a_conversation_that_is_cut_off_keeps_the_order_of_the_file(parity_root: Path) -> None:
    """Another order would cut other answers off, which the stores do not hold."""
    config = VideoLLaMA2Config.from_pretrained(parity_root)
    pixels = read_pixels(parity_root / "tiny-siglip", "pad")
    tokenizer = AutoTokenizer.from_pretrained(parity_root)
    whole = VideoLLaMA2Conversations(tokenizer, pixels, 4, config.visual_tokens, 2048)
    sample = _dataset([_row(5, 5)]).samples[0]
    order = (4, 0, 3, 1, 2)
    assert not encode(sample, order, whole, None).unshuffled
    assert _targets(encode(sample, order, whole, None)) == _targets(whole.encode(sample, None))
    cut = replace(whole, max_length=whole.tokens(sample) - 5)
    row = encode(sample, order, cut, None)
    assert row.unshuffled
    assert torch.equal(row.input_ids_S, cut.encode(sample, None).input_ids_S)
    assert torch.equal(row.ordinal_S, cut.encode(sample, None).ordinal_S)
    mixed = _dataset([_row(number, number % 6 + 1) for number in range(8)], SamplingPolicy(shuffle_turns=True))
    short: Any = replace(whole, max_length=60)
    sampler = Sampler(8, global_batch=8, micro_batch=8, seed=0)
    ((batch,),) = windows(mixed, short, sampler, start=0, stop=1, workers=0, with_media=False)
    long = {s.id for s in mixed.samples if whole.tokens(s) > 60}
    assert 0 < len(long) < 8
    assert set(batch.unshuffled) <= long
    assert batch.unshuffled


# --- the stores ------------------------------------------------------------------------------------------


def test_a_store_of_the_files_order_is_read_right_whatever_is_shown(processor: TinyProcessor, tmp_path: Path) -> None:
    """Shuffled turns and another number of frames: the same loss for the same token, and no refusal."""
    ids: list[int] = []
    counts: list[int] = []
    checksums: list[int] = []
    losses: list[Tensor] = []
    for batch in text_batches(DATA, processor, tokens_per_batch=2000):
        count_B, checksum_B = regate.store_keys(batch.layout)
        ids += batch.sample_ids_B.tolist()
        counts += count_B
        checksums += checksum_B
        # A loss that tells the token and its place in the file: both must be found again.
        for row, count in enumerate(count_B):
            ordinal_N = torch.arange(count)
            labels_N = batch.layout.labels_BS[row][batch.layout.target_BS[row]]
            losses.append((labels_N % 32).float() + ordinal_N.float() / 64)
    keys = {"sample_ids": ids, "num_targets": counts, "checksums": checksums}
    writer = regate.ReferenceWriter.create(tmp_path / "store", fingerprint={"test": 1}, **keys)
    writer.write(ids, losses)
    store = writer.finish()
    eight = replace(processor, frames=8)
    sampler = Sampler(40, global_batch=10, micro_batch=5, seed=3)
    moved = 0
    for window in windows(DATA, eight, sampler, start=0, stop=8, workers=0, with_media=False):
        for batch in window:
            layout = batch.layout
            found_BS = store.losses(batch.sample_ids_B, layout)
            target_BS = layout.target_BS
            expected_BS = (layout.labels_BS % 32).float() + layout.ordinal_BS.float() / 64
            assert torch.equal(found_BS[target_BS], expected_BS[target_BS])
            moved += int((layout.ordinal_BS[target_BS].diff() < -1).sum())
    assert moved > 40, "the turns were not shuffled"


def test_shown_media_depend_on_the_visit_and_never_on_workers_or_resuming(
    processor: TinyProcessor, tmp_path: Path
) -> None:
    for number in range(12):
        folder = tmp_path / f"{number}.mp4"
        folder.mkdir()
        _pictures(folder, 30, seed=number)
    data = _dataset([_row(number, 3) for number in range(12)], root=tmp_path)
    sampler = Sampler(12, global_batch=4, micro_batch=2, seed=0)

    def run(start: int, workers: int) -> list[Tensor]:
        made = windows(data, processor, sampler, start=start, stop=6, workers=workers)
        return [part for window in made for b in window for part in (b.inputs["pixel_values"], b.layout.ordinal_BS)]

    whole = run(0, 0)
    assert all(torch.equal(a, b) for a, b in zip(whole[12:], run(3, 2), strict=True))
    sample = data.samples[0]
    first, again, second = (_pixels(sample, data, processor, epoch) for epoch in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    still, small = replace(data, sampling=SamplingPolicy(rule="middle")), replace(processor, size=32)
    assert torch.equal(_pixels(sample, still, small, 0), _pixels(sample, still, small, 1))


def _pixels(sample: Sample, data: DataSet, processor: TinyProcessor, epoch: int) -> Tensor:
    pixels = load(sample, data, processor, EpochView(0, epoch)).pixels
    assert pixels is not None
    return pixels


def _pictures(folder: Path, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for number in range(1, count + 1):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{number:05d}.jpg")
