"""The choices of a gate, made again from what its run stored: which targets of the data set it kept in each epoch.

A run's stores hold all that its gate decided on: the reference losses (Eq. 1) and the running losses at the start of
each epoch (Eq. 2). The score (Eq. 3) and the choice are those of `regate`, at the recipe's own keep_ratio; dense
steps, which keep everything, are left aside. Nothing is trained and no model is loaded, only its tokenizer.

Legend: B rows, S expanded length.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from harness.analysis.choices.elided_words import Chosen, Panels, Texts, WordCounts
from harness.analysis.choices.selection import SCHEMA, read_selection, write_selection
from harness.common.errors import StaleError
from harness.config.recipe import Recipe
from harness.records.run_folder import OWN_FILES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from harness.analysis.choices.elided_words import Token
    from harness.analysis.runs import Run
    from harness.common.progress import Progress
    from harness.config.recipe import Paths
    from harness.data.processor import Processor
    from harness.data.sample import Sample
    from harness.data.sources import DataSet
    from regate import DifficultyStore, ReferenceStore
    from regate.config import GateConfig

_ROWS: Final = 128
"""Samples of a batch of the pass."""


@dataclass(frozen=True, slots=True)
class Stores:
    """What a run's gate read, as far as its score does.

    Attributes:
        epochs: those whose starting values are kept, of the epochs that the training began; a gate without running
            losses chooses alike in all of them and has epoch 0 alone.
    """

    reference: ReferenceStore | None
    difficulty: DifficultyStore | None
    epochs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Replay:
    """A run whose choices can be made again.

    Attributes:
        made_from: what the choices depend on, small enough to compare at each call.
    """

    run: Run
    recipe: Recipe
    gate: GateConfig
    stores: Stores
    made_from: Mapping[str, Any]

    def data(self, paths: Paths) -> tuple[DataSet, Processor] | str:
        """The data set and what makes tokens of it, or which of them is not here.

        Raises:
            StaleError, DataError: they are not those that the run used.
        """
        from harness.data.conversion import usable
        from harness.data.sources import missing_data, open_data
        from harness.models import adapter_for

        recipe = self.recipe
        lines = missing_data(recipe.data, paths, recipe.seed)
        if lines:
            return f"its data are not here: {lines[0]}"
        data = usable(recipe, open_data(recipe.data, paths, recipe.seed))
        adapter = adapter_for(recipe, data)
        if adapter.missing():
            return f"its tokenizer is not here: {adapter.missing()[0]}"
        processor = adapter.processor()
        _same(self.run, data, processor)
        return data, processor

    def walk(
        self, data: DataSet, processor: Processor, progress: Progress
    ) -> Iterator[tuple[Sample, list[Token], Chosen]]:
        """Every sample of the data set, in its order, with its targets as words and what the gate chose of them."""
        texts = Texts(processor)
        with progress.task(f"choices of {self.recipe.name}", len(data.samples)) as advance:
            for first in range(0, len(data.samples), _ROWS):
                samples = data.samples[first : first + _ROWS]
                for chosen in choices(samples, first, self.gate, processor, self.stores, self.recipe.seed):
                    sample = samples[chosen.sample - first]
                    yield sample, texts.of(sample, chosen.tokens), chosen
                advance(first + len(samples))


def open_replay(run: Run, paths: Paths) -> Replay | str:
    """A run with what its gate read, or why its choices cannot be made again.

    Args:
        paths: where data, weights and stores are on this machine.

    Raises:
        StaleError, DataError: a store is not the one that the run used.
    """
    own = _own_rule(run)
    if own is not None and not own.is_file():
        return f"its selection rule is not kept: {own}"
    recipe = recipe_of(run, paths)
    if recipe.gate is None:
        return "it has no gate"
    reason = _not_replayable(recipe.gate)
    if reason is not None:
        return reason
    stores = _open_stores(run, recipe.gate, Path(paths.stores))
    return stores if isinstance(stores, str) else Replay(run, recipe, recipe.gate, stores, _made_from(run, stores))


def study(run: Run, paths: Paths, progress: Progress) -> str | None:
    """Replay a run's choices over its whole data set and write them to selection.json in its folder.

    Args:
        paths: where data, weights and stores are on this machine.

    Returns:
        Why there is nothing to replay, or None where it was done. A file that is there and of the same stores is
        left alone.

    Raises:
        StaleError, DataError: the data, the tokenizer or a store is not the one that the run used.
    """
    replay = open_replay(run, paths)
    if isinstance(replay, str):
        return replay
    if replay.stores.difficulty is not None and run.running_losses is None:
        progress.say(
            f"{run.id}: its running losses have no checksum, as an earlier version trained it: a byte of them that "
            "changed is not seen"
        )
    stored = read_selection(run.folder)
    if stored is not None and stored["made_from"] == replay.made_from:
        return None
    opened = replay.data(paths)
    if isinstance(opened, str):
        return opened
    results = _pass(replay, *opened, progress)
    write_selection(run.folder, {"schema": SCHEMA, "run": run.id, "made_from": replay.made_from, **results})
    return None


def recipe_of(run: Run, paths: Paths) -> Recipe:
    """The recipe of a finished run, with the places of this machine; a selection rule of its own is read from the
    run's folder, where a copy is kept."""
    import json

    recipe = {**run.record["recipe"], "paths": paths.model_dump()}
    own = _own_rule(run)
    if own is not None:
        recipe["gate"] = {**recipe["gate"], "selection": {**recipe["gate"]["selection"], "file": str(own)}}
    return Recipe.model_validate_json(json.dumps(recipe))


def _own_rule(run: Run) -> Path | None:
    """Where the run's own selection rule is kept; None where it has none."""
    selection = None if run.gate is None else run.gate["selection"]
    return run.folder / OWN_FILES / selection["file"] if isinstance(selection, dict) else None


def choices(
    samples: Sequence[Any], first: int, gate: GateConfig, processor: Processor, stores: Stores, seed: int
) -> Iterator[Chosen]:
    """The gate's choices for some samples, of which the first has place `first` in the data set.

    Raises:
        regate's StoreError, MismatchError: a store is not that of these samples.
    """
    import torch

    from regate.candidates import candidates_of, in_order

    batch = processor.collate([processor.encode(sample, None) for sample in samples])
    candidates, ids_B = candidates_of(batch.layout, gate.candidates), batch.sample_ids_B
    reference_BS = None if stores.reference is None else stores.reference.losses_at(candidates, ids_B)
    kept_BS = {
        epoch: _choose(gate, candidates, ids_B, reference_BS, _difficulty(stores, candidates, ids_B, epoch), seed)
        for epoch in stores.epochs
    }
    alone_BS = None if reference_BS is None else _top(reference_BS, candidates, gate.keep_ratio)
    tokens = in_order(candidates, candidates.tokens_BS)
    count_B = batch.layout.target_BS.sum(dim=1).tolist()

    def at(value_BS: Tensor | None) -> list[Any]:
        if value_BS is None:
            return [None] * len(samples)
        # Targets come first in canonical order; prompt tokens, where they compete, behind them.
        return [row[:count].numpy() for row, count in zip(in_order(candidates, value_BS), count_B, strict=True)]

    losses, alone = at(reference_BS), at(alone_BS)
    kept = {epoch: at(value_BS.to(torch.bool)) for epoch, value_BS in kept_BS.items()}
    for row, count in enumerate(count_B):
        kept_of_sample = {epoch: rows[row] for epoch, rows in kept.items()}
        yield Chosen(first + row, tokens[row][:count].tolist(), losses[row], kept_of_sample, alone[row])


def _choose(
    gate: GateConfig, candidates: Any, ids_B: Tensor, reference_BS: Any, difficulty_BS: Any, seed: int
) -> Tensor:
    """Eq. 3 and the top k, as `regate.Gate.decide` does them on a sparse step."""
    from regate.scoring import score

    score_BS = score(
        gate, candidates.slot_BS, ids_B, student_BS=difficulty_BS, reference_BS=reference_BS, seed=seed, step=0
    )
    return _top(score_BS, candidates, gate.keep_ratio)


def _top(score_BS: Tensor, candidates: Any, keep_ratio: float) -> Tensor:
    from regate.top_k import top_k

    return top_k(score_BS, candidates.mask_BS, keep_ratio)


def _difficulty(stores: Stores, candidates: Any, ids_B: Tensor, epoch: int) -> Tensor | None:
    return None if stores.difficulty is None else stores.difficulty.values(candidates, ids_B, epoch=epoch)


def _pass(replay: Replay, data: DataSet, processor: Processor, progress: Progress) -> dict[str, Any]:
    """One pass over the data set's text: words, overlaps, panels."""
    epochs, gate = replay.stores.epochs, replay.gate
    words, overlaps, panels = WordCounts(epochs), Overlaps(epochs), Panels(data.frames)
    for sample, tokens, chosen in replay.walk(data, processor, progress):
        words.add(tokens, chosen)
        overlaps.add(chosen)
        panels.add(sample, tokens, chosen)
    return {
        "keep_ratio": gate.keep_ratio,
        "selection": gate.selection_name,
        "samples": len(data.samples),
        "targets": words.targets,
        "epochs": list(epochs),
        **words.result(),
        "overlap": overlaps.rows(),
        "by_reference": overlaps.by_reference(),
        "panels": panels.panels,
    }


class Overlaps:
    """How much of the choice stays from one epoch to the next: the Jaccard index |A and B| / |A or B| of a sample's
    kept targets, and its mean over samples. Samples without targets are left out."""

    def __init__(self, epochs: Sequence[int]) -> None:
        self._between = dict.fromkeys(pairwise(epochs), 0.0)
        self._reference = self._chance = 0.0
        self._with_reference = self._samples = 0

    def add(self, chosen: Chosen) -> None:
        count = len(chosen.tokens)
        if not count:
            return
        last = chosen.kept[max(chosen.kept)]
        self._samples += 1
        self._chance += expected_jaccard(count, int(last.sum()))
        for a, b in self._between:
            self._between[a, b] += _jaccard(chosen.kept[a], chosen.kept[b])
        if chosen.by_reference is not None:
            self._with_reference += 1
            self._reference += _jaccard(chosen.by_reference, last)

    def rows(self) -> list[dict[str, Any]]:
        """One entry for each two epochs that follow each other; `chance` is that of two random choices."""
        chance = round(self._chance / max(1, self._samples), 6)
        return [
            {"first": a, "second": b, "jaccard": round(total / max(1, self._samples), 6), "chance": chance}
            for (a, b), total in self._between.items()
        ]

    def by_reference(self) -> dict[str, Any] | None:
        """The choice by reference loss alone against that of the last epoch."""
        if not self._with_reference:
            return None
        value, chance = self._reference / self._with_reference, self._chance / self._samples
        return {"jaccard": round(value, 6), "chance": round(chance, 6)}


def _jaccard(first: NDArray[Any], second: NDArray[Any]) -> float:
    either = int((first | second).sum())
    return int((first & second).sum()) / either if either else 1.0


@cache
def expected_jaccard(count: int, kept: int) -> float:
    """Mean Jaccard index of two independent random choices of `kept` out of `count`: their common part is
    hypergeometric."""
    from scipy.stats import hypergeom

    if not kept:
        return 1.0
    common = range(max(0, 2 * kept - count), kept + 1)
    return float(sum(hypergeom.pmf(k, count, kept, kept) * k / (2 * kept - k) for k in common))


def _not_replayable(gate: GateConfig) -> str | None:
    if not (gate.needs_reference or gate.needs_difficulty):
        return f"selection {gate.selection_name} depends on no loss"
    if gate.selects_after_forward:
        return f"selection {gate.selection_name} chooses by the step's own losses, which no store keeps"
    return None


def _open_stores(run: Run, gate: GateConfig, folder: Path) -> Stores | str:
    """The run's stores, or which of them is not here."""
    from regate import DifficultyStore, ReferenceStore

    reference = difficulty = None
    epochs: tuple[int, ...] = (0,)
    facts = run.record["reference"]
    if facts is not None:
        path = folder / f"reference-{facts['fingerprint'][:16]}"
        if not path.exists():
            return f"its reference losses are not here: {path}"
        reference = ReferenceStore.open(path, expect_fingerprint=facts["made_from"])
    if gate.needs_difficulty:
        path = run.folder / "difficulty"
        if not path.exists():
            return f"its running losses are not here: {path}"
        difficulty = DifficultyStore.open(path)
        difficulty.check(run.running_losses or {})
        epochs = tuple(epoch for epoch in difficulty.epochs if epoch < run.totals["epochs_begun"])
    return Stores(reference, difficulty, epochs)


def _made_from(run: Run, stores: Stores) -> Mapping[str, Any]:
    """What a replay's result depends on, small enough to compare at each call."""
    difficulty = stores.difficulty
    values = {str(epoch): difficulty.checksum(epoch) for epoch in stores.epochs} if difficulty is not None else {}
    return {"reference": run.record["provenance"]["reference"], "difficulty": values}


def _same(run: Run, data: DataSet, processor: Processor) -> None:
    expected = {"data": (run.record["provenance"]["data"], data.fingerprint)}
    if run.record["reference"] is not None:
        expected["processor"] = (run.record["reference"]["made_from"]["processor"], processor.fingerprint)
    for name, (recorded, present) in expected.items():
        if recorded != present:
            raise StaleError(
                f"{run.id}: its {name} has fingerprint {recorded[:16]}, what is here has {present[:16]}",
                hint="name the folders of that run with paths.data and paths.weights",
            )


__all__ = [
    "Chosen", "Overlaps", "Replay", "Stores", "choices", "expected_jaccard", "open_replay", "recipe_of", "study",
]  # fmt: skip
