"""Items that a gated run answers otherwise than its baseline, and what the gate left out of the words they ask for.

An item asks for the words of its right answer that some other option lacks. Its training neighbours are the answers
of the training data that have one of these words and, their question included, most words in common with the item's
question and right answer. What the gate left out there comes from a replay of the run's choices. Items that only the
baseline gets right stand beside those that both do: a part that is left out says something of an item's loss only
where it is larger than for the items that were not lost.

The results lie in the gated run's folder (needed_words.json); figures are pure functions of that file.
"""

from __future__ import annotations

import heapq
import re
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from harness.analysis.choices.kept_files import read_kept, write_kept
from harness.analysis.choices.replay import open_replay
from harness.analysis.choices.word_classes import MARKER, PUNCTUATION, group, word_class
from harness.analysis.runs import benchmarks_of, comparable
from harness.common.hashing import digest
from harness.records.record import read_items

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from harness.analysis.choices.elided_words import Chosen, Token
    from harness.analysis.runs import Pair
    from harness.common.progress import Progress
    from harness.config.recipe import Paths
    from harness.data.sample import Question, Sample
    from harness.evaluation.task import MultipleChoiceTask

SCHEMA: Final = 1
FILE: Final = "needed_words.json"
NEIGHBOURS: Final = 16
"""Training answers that are looked at for each item."""
EXAMPLES: Final = 4
"""Lost items that are shown, each with its nearest training answers."""
_SHOWN: Final = 2
BOTH: Final = "right in both"
LOST: Final = "lost"
"""Right in the baseline, wrong in the gated run."""
WON: Final = "won"
"""The other way round."""
NEITHER: Final = "wrong in both"
_GROUPS: Final = {(True, True): BOTH, (True, False): LOST, (False, True): WON, (False, False): NEITHER}
_TAG: Final = re.compile(r"<media:\d+>")
Needed = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Item:
    """A held-out item under both arms.

    Attributes:
        group: one of `BOTH`, `LOST`, `WON` and `NEITHER`.
        given: the answer of the gated run, as text.
        asked_for: the words that the right answer has and some other option lacks.
        words: those of the question and the right answer.
    """

    task: str
    question: Question
    group: str
    given: str
    asked_for: frozenset[str]
    words: frozenset[str]


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer of the training data under the gate.

    Attributes:
        words: those of its question and of the answer.
        tokens: its targets, with whether the gate kept each in the last epoch that is known.
    """

    sample: str
    question: str
    words: frozenset[str]
    tokens: tuple[tuple[Token, bool], ...]

    def of(self, words: frozenset[str]) -> tuple[int, int]:
        """Targets of these words, and how many of them were left out."""
        kept = [kept for token, kept in self.tokens if token.word in words]
        return len(kept), kept.count(False)


def words_of(text: str) -> frozenset[str]:
    """The words of a text in lower case, without punctuation, cut as those of a training answer are."""
    letters = list(_TAG.sub(" ", text))
    words: dict[int, str] = defaultdict(str)
    for number, letter in zip(group(letters), letters, strict=True):
        words[number] += letter
    return frozenset(word for raw in words.values() if word_class(word := raw.strip().lower()) != PUNCTUATION)


def words_asked_for(question: Question, *, accepted: bool) -> frozenset[str]:
    """The words of the right answer that some other option lacks; all of its words where no option lacks one.

    Args:
        accepted: the options are spellings of one answer and no alternatives.
    """
    right = words_of(question.options[question.answer])
    others = [] if accepted else [words_of(o) for place, o in enumerate(question.options) if place != question.answer]
    return frozenset(word for word in right if any(word not in other for other in others)) or right


@dataclass(slots=True)
class Neighbours:
    """The nearest training answers of each item, found in one pass over the training data.

    Nearness is the Jaccard index of the words; of answers that are equally near, the first of the data set count.
    """

    items: Sequence[Item]
    targets: int = 0
    left_out: int = 0
    _nearest: list[list[tuple[float, int, Answer]]] = field(default_factory=list)
    _asking: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    _answers: int = 0

    def __post_init__(self) -> None:
        self._nearest = [[] for _ in self.items]
        for place, item in enumerate(self.items):
            for word in item.asked_for:
                self._asking[word].append(place)

    def add(self, sample: Sample, tokens: Sequence[Token], chosen: Chosen) -> None:
        """The answers of one sample."""
        kept = chosen.kept[max(chosen.kept)].tolist()
        self.targets += len(kept)
        self.left_out += kept.count(False)
        for answer in _answers(sample, tokens, kept):
            self._answers += 1
            said = {token.word for token, _ in answer.tokens}
            for place in {place for word in said for place in self._asking.get(word, ())}:
                words = self.items[place].words
                common = len(words & answer.words)
                nearness = common / (len(words) + len(answer.words) - common)
                entry, nearest = (nearness, -self._answers, answer), self._nearest[place]
                if len(nearest) < NEIGHBOURS:
                    heapq.heappush(nearest, entry)
                elif entry[:2] > nearest[0][:2]:
                    heapq.heapreplace(nearest, entry)

    def of(self, place: int) -> list[Answer]:
        """The neighbours of an item, nearest first."""
        return [answer for *_, answer in sorted(self._nearest[place], key=lambda entry: entry[:2], reverse=True)]


def study(
    pair: Pair, tasks: Mapping[str, MultipleChoiceTask], paths: Paths, progress: Progress
) -> str | None:
    """Find the training neighbours of a pair's items and write what the gate left out of them to the gated run's
    folder.

    Args:
        tasks: benchmark -> the questions that its items were asked by; one without is left aside.
        paths: where data, weights and stores are on this machine.

    Returns:
        Why there is nothing to show, or None where it was done. A file that is there and of the same stores and
        items is left alone.

    Raises:
        StaleError, DataError: the data, the tokenizer or a store is not the one that the run used, or items are not
            those of a record.
    """
    run, baseline = pair.gated, pair.baseline
    if run is None or baseline is None:
        return "it has no baseline to compare with"
    asked = {name: items_of(pair, name, tasks[name]) for name in benchmarks_of(pair.runs) if name in tasks}
    asked = {name: items for name, items in asked.items() if items}
    if not asked:
        return "no benchmark of both arms has its items and questions kept"
    replay = open_replay(run, paths)
    if isinstance(replay, str):
        return replay
    made_from = {**replay.made_from, "baseline": baseline.id, "items": _items_digest(asked)}
    stored = read_needed(run.folder)
    if stored is not None and stored["made_from"] == made_from:
        return None
    opened = replay.data(paths)
    if isinstance(opened, str):
        return opened
    by_benchmark = {name: Neighbours(items) for name, items in asked.items()}
    for sample, tokens, chosen in replay.walk(*opened, progress):
        for neighbours in by_benchmark.values():
            neighbours.add(sample, tokens, chosen)
    needed = {
        "schema": SCHEMA,
        "run": run.id,
        "baseline": baseline.id,
        "made_from": made_from,
        "keep_ratio": replay.gate.keep_ratio,
        "selection": replay.gate.selection_name,
        "epoch": replay.stores.epochs[-1],
        "benchmarks": {name: _result(neighbours) for name, neighbours in by_benchmark.items()},
    }
    write_needed(run.folder, needed)
    return None


def items_of(pair: Pair, benchmark: str, task: MultipleChoiceTask) -> list[Item]:
    """The items of the last evaluation that both arms were asked alike and whose question is kept; none where
    `harness.analysis.runs.comparable` is None."""
    both = comparable(pair, benchmark)
    if both is None or pair.gated is None:
        return []
    evaluation, baseline_values, gated_values = both
    last = pair.gated.last(benchmark)
    assert last is not None
    lines = {(line["task"], str(line["key"])): line for line in read_items(pair.gated.folder, last) or ()}
    items = []
    for entry in evaluation["tasks"]:
        name, ability = entry["task"], entry["ability"]
        for question in task.tasks.get(ability, ()):
            before, after = (
                values.get(name, {}).get(question.key) for values in (baseline_values, gated_values)
            )
            if before is None or after is None:
                continue
            line, accepted = lines[name, question.key], task.benchmark.form == "short"
            given = str(line["text"]) if accepted else question.options[line["prediction"]]
            asked_for = words_asked_for(question, accepted=accepted)
            words = words_of(question.text) | words_of(question.options[question.answer])
            items.append(Item(name, question, _GROUPS[before == 1, after == 1], given, asked_for, words))
    return items


def read_needed(run_dir: Path) -> Needed | None:
    """What `study` wrote; None if it was not made.

    Raises:
        DataError, StaleError: as `read_kept`.
    """
    return read_kept(run_dir / FILE, "the words that items ask for", SCHEMA)


def write_needed(run_dir: Path, needed: Needed) -> Path:
    return write_kept(run_dir / FILE, needed)


def _answers(sample: Sample, tokens: Sequence[Token], kept: Sequence[bool]) -> list[Answer]:
    spoken: dict[int, list[tuple[Token, bool]]] = defaultdict(list)
    for token, was_kept in zip(tokens, kept, strict=True):
        if token.kind != MARKER:
            spoken[token.answer].append((token, was_kept))
    questions = _questions(sample)
    answers = []
    for place, said in enumerate(spoken.values()):
        question = questions[place] if len(questions) == len(spoken) else ""
        written = frozenset(token.word for token, _ in said if token.kind != PUNCTUATION)
        answers.append(Answer(sample.key, question, words_of(question) | written, tuple(said)))
    return answers


def _questions(sample: Sample) -> list[str]:
    """What stands before each answer, without the tag that stands for the media."""
    questions, before = [], ""
    for turn in sample.turns:
        if turn.role == "assistant":
            questions.append(before)
        before = _TAG.sub(" ", turn.text).strip() if turn.role == "user" else ""
    return questions


def _items_digest(asked: Mapping[str, Sequence[Item]]) -> str:
    return digest(
        {name: [[item.task, item.question.key, item.group, item.given] for item in asked[name]] for name in asked}
    )


def _result(neighbours: Neighbours) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    for place, item in enumerate(neighbours.items):
        answers = neighbours.of(place)
        counts = [answer.of(item.asked_for) for answer in answers]
        rows.append(
            {
                "task": item.task,
                "key": item.question.key,
                "ability": item.question.ability,
                "group": item.group,
                "words": sorted(item.asked_for),
                "neighbours": len(answers),
                "targets": sum(targets for targets, _ in counts),
                "left_out": sum(left for _, left in counts),
            }
        )
    lost = [place for place, row in enumerate(rows) if row["group"] == LOST and row["targets"]]
    lost.sort(key=lambda place: -rows[place]["left_out"] / rows[place]["targets"])
    return {
        "items": rows,
        "targets": neighbours.targets,
        "left_out": neighbours.left_out,
        "examples": [_example(neighbours, place) for place in lost[:EXAMPLES]],
    }


def _example(neighbours: Neighbours, place: int) -> dict[str, Any]:
    item = neighbours.items[place]
    return {
        "task": item.task,
        "key": item.question.key,
        "question": _TAG.sub(" ", item.question.text).strip(),
        "right": item.question.options[item.question.answer],
        "given": item.given,
        "neighbours": [
            {
                "sample": answer.sample,
                "question": answer.question,
                "words": _as_words(answer, item.asked_for),
            }
            for answer in neighbours.of(place)[:_SHOWN]
        ],
    }


def _as_words(answer: Answer, asked_for: frozenset[str]) -> list[dict[str, Any]]:
    """The answer word by word; one is kept where all of its targets are."""
    words: dict[int, dict[str, Any]] = {}
    for token, kept in answer.tokens:
        word = words.setdefault(token.number, {"text": "", "kept": True, "asked_for": token.word in asked_for})
        word["text"] += token.piece
        word["kept"] &= kept
    return [{**word, "text": word["text"].strip()} for word in words.values() if word["text"].strip()]


__all__ = [
    "BOTH", "EXAMPLES", "FILE", "LOST", "NEIGHBOURS", "NEITHER", "WON", "Answer", "Item", "Needed", "Neighbours",
    "items_of", "read_needed", "study", "words_asked_for", "words_of", "write_needed",
]  # fmt: skip
