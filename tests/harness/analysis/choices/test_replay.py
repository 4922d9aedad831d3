"""Choices made again from the stores are the choices that the gate made while it ran."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from harness.analysis.choices.elided_words import Chosen, Texts
from harness.analysis.choices.replay import Overlaps, Stores, choices, expected_jaccard, study
from harness.analysis.choices.selection import read_selection
from harness.common.errors import StaleError
from harness.common.progress import Progress
from harness.report.tables.selection import kinds_table, overlap_table, words_table, write_tables
from regate import DifficultyStore, ReferenceStore, StoreError

if TYPE_CHECKING:
    from pathlib import Path

    from tests.harness.worlds.choices import World

QUIET = Progress(quiet=True)


def stores_of(world: World) -> Stores:
    (path,) = (world.results.parent / "stores").glob("reference-*")
    folder = world.run.folder / "difficulty"
    return Stores(ReferenceStore.open(path), DifficultyStore.open(folder), (0, 1, 2))


def test_a_replay_is_what_the_gate_decided(choice_world: World) -> None:
    """Every sparse step of three epochs, target by target."""
    gate = choice_world.recipe.gate
    assert gate is not None
    samples = list(choice_world.data.samples)
    replayed = {
        samples[chosen.sample].id: chosen
        for first in range(0, len(samples), 10)
        for chosen in choices(
            samples[first : first + 10], first, gate, choice_world.processor, stores_of(choice_world), 0
        )
    }
    assert {epoch for _, epoch, _ in choice_world.kept} == {0, 1, 2}
    for (_, epoch, sample), kept in choice_world.kept.items():
        assert replayed[sample].kept[epoch].tolist() == kept
    changed = [
        sample for _, epoch, sample in choice_world.kept if epoch == 2 and
        replayed[sample].kept[0].tolist() != replayed[sample].kept[2].tolist()
    ]  # fmt: skip
    assert changed, "the running losses matter, so reading the wrong epoch would show"


def test_study_adds_up_and_is_made_once(choice_world: World) -> None:
    assert study(choice_world.run, choice_world.recipe.paths, QUIET) is None
    folder = choice_world.run.folder
    selection = read_selection(folder)
    assert selection is not None
    counts = [sum(row["targets"] for row in selection[name]) for name in ("words", "kinds")]
    (reference,) = (choice_world.results.parent / "stores").glob("reference-*")
    store = ReferenceStore.open(reference)
    assert counts == [selection["targets"]] * 2 == [store.num_targets_total] * 2
    budget = sum(max(1, n // 2) for n in np.diff(store.index.offsets_M1).tolist())
    for epoch in range(3):
        left = sum(row["left_out"][epoch] for row in selection["kinds"])
        assert left == store.num_targets_total - budget == sum(row["left_out"][epoch] for row in selection["words"])
    mean = sum(row["mean_loss"] * row["targets"] for row in selection["kinds"]) / selection["targets"]
    assert mean == pytest.approx(np.asarray(store.values, dtype=np.float64).mean(), rel=1e-4)
    marked = sum(len(sample.spans) for sample in choice_world.data.samples)
    grounded = sum(row["words"] for row in selection["grounded"])
    assert grounded == marked, "every grounded word is one word of an answer"
    before = (folder / "selection.json").stat().st_mtime_ns
    assert study(choice_world.run, choice_world.recipe.paths, QUIET) is None
    assert (folder / "selection.json").stat().st_mtime_ns == before, "the stored choices are current"


def test_panels_show_real_losses_and_the_answers_own_words(choice_world: World) -> None:
    assert study(choice_world.run, choice_world.recipe.paths, QUIET) is None
    selection = read_selection(choice_world.run.folder)
    assert selection is not None
    by_key = {sample.key: sample for sample in choice_world.data.samples}
    store = stores_of(choice_world).reference
    assert store is not None
    assert len(selection["panels"]) == 4
    for panel in selection["panels"]:
        sample = by_key[panel["sample"]]
        start, stop = (int(store.index.offsets_M1[store.index.ids_M.searchsorted(sample.id) + i]) for i in (0, 1))
        losses = [token["loss"] for token in panel["tokens"]]
        assert losses == pytest.approx(store.values[start:stop].astype(float).tolist(), abs=6e-5)
        kept = [token["loss"] for token in panel["tokens"] if token["by_reference"]]
        left = [token["loss"] for token in panel["tokens"] if not token["by_reference"]]
        assert len(kept) == len(losses) // 2
        assert min(kept) >= max(left), "the upper half"
        text = "".join(token["text"] for token in panel["tokens"] if token["kind"] != "marker")
        assert text == sample.turns[-1].text.lower()
        grounded = {sample.turns[turn].text[a:b].lower() for turn, a, b, _ in sample.spans}
        assert {token["text"].strip() for token in panel["tokens"] if token["grounded"]} == grounded
        assert panel["frames"], "a strip of the clip"


def test_tables_name_all_epochs_and_are_the_same_each_time(choice_world: World, tmp_path: Path) -> None:
    assert study(choice_world.run, choice_world.recipe.paths, QUIET) is None
    selection = read_selection(choice_world.run.folder)
    assert selection is not None
    first = {path.name: path.read_bytes() for path in write_tables(tmp_path, selection)}
    assert first == {path.name: path.read_bytes() for path in write_tables(tmp_path, selection)}
    assert len(first) == 7
    rows = json.loads(first[f"elided_words_{selection['run']}.json"])
    assert rows["words"] == selection["words"]
    titles = [column.title for column in words_table(selection).columns]
    assert [f"left out, epoch {epoch}" for epoch in (1, 2, 3)] == [t for t in titles if t.startswith("left out")]
    assert len(words_table(selection, limit=5).rows) == 5
    assert kinds_table(selection).rows[-1][0].text == "all"
    compared = [row[0].text for row in overlap_table(selection).rows]
    assert compared == ["epoch 1 and 2", "epoch 2 and 3", "reference loss alone and epoch 3"]


def test_other_data_are_refused_and_missing_stores_are_named(choice_world: World, tmp_path: Path) -> None:
    paths = choice_world.recipe.paths
    moved = paths.model_copy(update={"stores": str(tmp_path / "stores")})
    reason = study(choice_world.run, moved, QUIET)
    assert reason is not None
    assert str(tmp_path / "stores") in reason
    record = json.loads(json.dumps(choice_world.run.record))
    record["provenance"] |= {"data": "0" * 64, "reference": "1" * 64}
    with pytest.raises(StaleError, match="its data has fingerprint 0000"):
        study(replace(choice_world.run, record=record, _read={}), paths, QUIET)


def test_running_losses_that_changed_are_named(choice_world: World) -> None:
    """Of every epoch, and also where the file is gone: without it the replay would be of the other epochs."""
    run, paths = choice_world.run, choice_world.recipe.paths
    assert run.running_losses is not None
    files = sorted((run.folder / "difficulty").glob("m.e*.npy"))
    assert [f"m.e{epoch}.npy" for epoch in sorted(run.running_losses)] == [file.name for file in files]
    for file in files:
        content = file.read_bytes()
        for damaged in (bytes([*content[:-1], content[-1] ^ 1]), None):
            file.unlink() if damaged is None else file.write_bytes(damaged)
            with pytest.raises(StoreError, match=f"{file} is "):
                study(run, paths, QUIET)
            file.write_bytes(content)
    assert study(run, paths, QUIET) is None


def test_running_losses_of_an_earlier_version_are_said_to_have_no_checksum(choice_world: World) -> None:
    said: list[str] = []
    progress = Progress(quiet=True)
    progress.say = said.append  # type: ignore[method-assign]
    assert study(choice_world.run, choice_world.recipe.paths, progress) is None
    assert not said
    record = {key: value for key, value in choice_world.run.record.items() if key != "running_losses"}
    earlier = replace(choice_world.run, record=record, _read={})
    assert study(earlier, choice_world.recipe.paths, progress) is None
    (line,) = said
    assert "its running losses have no checksum" in line


def test_a_selection_of_another_run_is_refused(choice_world: World, tmp_path: Path) -> None:
    assert study(choice_world.run, choice_world.recipe.paths, QUIET) is None
    folder = tmp_path / "other-00000000"
    folder.mkdir()
    (folder / "selection.json").write_bytes((choice_world.run.folder / "selection.json").read_bytes())
    with pytest.raises(StaleError, match="expected 1 of other-00000000"):
        read_selection(folder)


@pytest.mark.parametrize(("selection", "reason"), [("random", "depends on no loss"), (None, "it has no gate")])
def test_what_cannot_be_replayed_says_why(choice_world: World, selection: str | None, reason: str) -> None:
    record = json.loads(json.dumps(choice_world.run.record))
    record["recipe"]["gate"] = None if selection is None else {**record["recipe"]["gate"], "selection": selection}
    answer = study(replace(choice_world.run, record=record, _read={}), choice_world.recipe.paths, QUIET)
    assert answer is not None
    assert reason in answer


def test_a_gate_that_reads_the_reference_alone_has_one_choice(choice_world: World, tmp_path: Path) -> None:
    record = json.loads(json.dumps(choice_world.run.record))
    record["recipe"]["gate"]["selection"] = "reference"
    run = replace(choice_world.run, record=record, folder=tmp_path / choice_world.run.id, _read={})
    assert study(run, choice_world.recipe.paths, QUIET) is None
    selection = read_selection(run.folder)
    assert selection is not None
    assert selection["epochs"] == [0]
    assert selection["overlap"] == []
    assert selection["by_reference"]["jaccard"] == 1.0
    assert any("the same in every epoch" in note for note in overlap_table(selection).notes)


def test_overlap_is_the_mean_jaccard_index() -> None:
    overlaps = Overlaps((0, 1))
    a, b = np.array([True, True, False, False]), np.array([True, False, True, False])
    overlaps.add(Chosen(0, [1, 2, 3, 4], None, {0: a, 1: b}, a))
    overlaps.add(Chosen(1, [1, 2, 3, 4], None, {0: a, 1: a}, a))
    overlaps.add(Chosen(2, [], None, {0: a[:0], 1: a[:0]}, a[:0]))
    (row,) = overlaps.rows()
    assert row["jaccard"] == pytest.approx((1 / 3 + 1) / 2, abs=1e-6)
    by_reference = overlaps.by_reference()
    assert by_reference is not None
    assert by_reference["jaccard"] == row["jaccard"]


def test_chance_is_that_of_independent_choices() -> None:
    """2 of 4: in common 0, 1, 2 with probability 1/6, 4/6, 1/6."""
    assert expected_jaccard(4, 2) == pytest.approx(4 / 6 * 1 / 3 + 1 / 6)
    draw = np.random.default_rng(0)
    indices = []
    for _ in range(4000):
        a, b = (set(draw.choice(11, 5, replace=False).tolist()) for _ in range(2))
        indices.append(len(a & b) / len(a | b))
    assert expected_jaccard(11, 5) == pytest.approx(np.mean(indices), abs=0.01)


def test_pieces_keep_the_space_between_words(choice_world: World) -> None:
    """Through a byte-level tokenizer, as VideoLLaMA2's, and through the tiny model's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=["<|im_end|>"])
    text = "The caf\u00e9's well-lit window is red, isn't it?"
    backend.train_from_iterator([text] * 3, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")

    class Speaking:
        def __init__(self) -> None:
            self.tokenizer = tokenizer

    ids = [*tokenizer.encode(text), tokenizer.eos_token_id, *tokenizer.encode("\n")]
    tokens = Texts(Speaking()).of(choice_world.data.samples[0], [*ids, *ids])  # type: ignore[arg-type]
    for answer in (0, 1):
        assert "".join(token.piece for token in tokens if token.answer == answer) == f"{text}<|im_end|>\n"
    words = list(dict.fromkeys((token.number, token.word) for token in tokens if token.answer == 0))
    expected = ["the", "caf\u00e9's", "well-lit", "window", "is", "red", ",", "isn't", "it", "?", "<|im_end|>", "␣"]
    assert [word for _, word in words] == expected
