"""Records as tables and figures look at them: runs, baseline / gated pairs, evaluations with their items.

Two runs are a pair when their recipes are equal but for `name` and `gate`, and one of them has no gate.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final

from harness.analysis.statistics import (
    Interval,
    McNemar,
    macro_interval,
    mean_interval,
    minimum_detectable,
    score_difference,
    score_interval,
    shared_differences,
    sign_flip_test,
    sign_test,
    standard_error,
    wilson,
)
from harness.benchmarks.scoring import Scoring, unit_values
from harness.common.errors import DataError, HarnessError
from harness.common.hashing import digest
from harness.config.model import WEIGHT_PATHS
from harness.records.record import Record, read_items, read_records
from regate.selection import SELECTIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

Evaluation = dict[str, Any]
Results = dict[str, dict[str, float]]
"""task -> unit -> value; a unit is an item unless the benchmark scores several items as one
(`harness.benchmarks.scoring`)."""


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run, or an evaluation without training: its record and its folder. Items are read once for an
    instance."""

    record: Record
    folder: Path
    _read: dict[tuple[str, int], Results | None] = field(default_factory=dict, repr=False, compare=False)

    @property
    def id(self) -> str:
        return str(self.record["id"])

    @property
    def name(self) -> str:
        return str(self.record["name"])

    @property
    def totals(self) -> dict[str, Any]:
        """What the training computed and took; only a trained run has it."""
        assert self.trained, self.id
        totals: dict[str, Any] = self.record["totals"]
        return totals

    @property
    def trained(self) -> bool:
        """False for weights that were evaluated as they are."""
        return self.record.get("totals") is not None

    @property
    def gate(self) -> dict[str, Any] | None:
        gate: dict[str, Any] | None = self.record["recipe"]["gate"]
        return gate

    @property
    def running_losses(self) -> dict[str, int] | None:
        """crc32 of the running losses at the training's end, by epoch; None without any, and of earlier versions."""
        checksums: dict[str, int] | None = self.record.get("running_losses")
        return checksums

    @property
    def seed(self) -> int:
        return int(self.record["recipe"]["seed"])

    @property
    def suite(self) -> tuple[str, str] | None:
        """Suite and arm, for a run that belongs to one."""
        mark = self.record.get("suite")
        return (str(mark["name"]), str(mark["arm"])) if mark else None

    @property
    def arm(self) -> str:
        """Baseline, or how the gate selects; or that nothing was trained."""
        if not self.trained:
            return "evaluated only"
        if self.gate is None:
            return "baseline"
        selection = self.gate["selection"]
        if isinstance(selection, dict):
            return f"{selection['function']} of {selection['file']}"
        return SELECTIONS[selection].label if selection in SELECTIONS else selection

    @property
    def family(self) -> str:
        """What the two arms of a pair share."""
        return self.shared("name", "gate")

    def shared(self, *without: str) -> str:
        """Digest of the recipe without some of its sections. Weights count by their name and not by the folder that
        they lie in; where two runs of one name have others, `differences` says so."""
        recipe = {key: value for key, value in self.record["recipe"].items() if key not in without}
        named = {
            key: PurePath(value).name if f"model.{key}" in WEIGHT_PATHS and isinstance(value, str) else value
            for key, value in recipe["model"].items()
        }
        return digest({**recipe, "model": named})

    def evaluations(self, benchmark: str) -> list[Evaluation]:
        """In order of step."""
        evaluations = [entry for entry in self.record["evaluations"] if entry["benchmark"] == benchmark]
        return sorted(evaluations, key=lambda entry: int(entry["step"]))

    def last(self, benchmark: str) -> Evaluation | None:
        """The evaluation after the most steps, or None."""
        evaluations = self.evaluations(benchmark)
        return evaluations[-1] if evaluations else None

    def items(self, evaluation: Evaluation) -> Results | None:
        """The value of each unit, or None where the items are not kept. See `read_items` for errors."""
        key = (evaluation["benchmark"], evaluation["step"])
        if key not in self._read:
            lines = read_items(self.folder, evaluation)
            try:
                self._read[key] = None if lines is None else unit_values(scoring_of(evaluation), lines)
            except (KeyError, ValueError) as error:
                raise DataError(f"{self.folder}: items of {key[0]} after step {key[1]}: {error}") from error
        return self._read[key]


@dataclass(frozen=True, slots=True)
class Pair:
    """Arms of one recipe. Either may be missing (None): a pair is shown as far as it was run."""

    baseline: Run | None
    gated: Run | None

    @property
    def runs(self) -> tuple[Run, ...]:
        return tuple(run for run in (self.baseline, self.gated) if run is not None)

    @property
    def name(self) -> str:
        """The gated run's name where there is one: a baseline may be in several pairs."""
        return (self.gated or self.runs[0]).name


def scoring_of(evaluation: Mapping[str, Any]) -> Scoring:
    """How the evaluation's items became its score; the shapes' own where it does not say."""
    return Scoring(**evaluation.get("scoring", {}))


def shown_scale(evaluation: Mapping[str, Any]) -> float:
    """What a score is multiplied with where people read it: 100 for parts of one, 1 for points."""
    return 1.0 if scoring_of(evaluation).scale == "points" else 100.0


def scored_units(evaluation: Mapping[str, Any], units: Results) -> Results:
    """The units of the tasks that count in the score."""
    return {
        task["task"]: units[task["task"]] for task in evaluation["tasks"] if task["in_mean"] and task["task"] in units
    }


def load_runs(results_dir: Path, damaged: Callable[[HarnessError], None] | None = None) -> list[Run]:
    """Every finished run below a results folder, in order of id. See `read_records` for errors.

    Args:
        damaged: gets the error of each run whose record or items cannot be read, which is left out then; None raises
            the error of a record, and leaves the items to whoever reads them.
    """
    runs = [Run(record, results_dir / "runs" / record["id"]) for record in read_records(results_dir, damaged)]
    return runs if damaged is None else [run for run in runs if _has_its_items(run, damaged)]


def _has_its_items(run: Run, damaged: Callable[[HarnessError], None]) -> bool:
    try:
        for evaluation in run.record["evaluations"]:
            run.items(evaluation)
    except HarnessError as error:
        damaged(error)
        return False
    return True


def pair_runs(runs: Iterable[Run]) -> list[Pair]:
    """One pair for each gated run, with its baseline; and one for each baseline that no gated run has.

    Several baselines of one recipe (under other names) are the same run; the first by id is taken. What was not
    trained is in no pair.
    """
    families: dict[str, list[Run]] = {}
    for run in sorted((run for run in runs if run.trained), key=lambda run: run.id):
        families.setdefault(run.family, []).append(run)
    pairs = []
    for members in families.values():
        baselines = [run for run in members if run.gate is None]
        gated = [run for run in members if run.gate is not None]
        first = baselines[0] if baselines else None
        pairs += [Pair(first, run) for run in gated]
        pairs += [Pair(run, None) for run in (baselines[1:] if gated else baselines)]
    return sorted(pairs, key=lambda pair: pair.name)


def differences(pair: Pair) -> list[str]:
    """What else than the gate differs between the two arms, in words; empty for a clean comparison."""
    if pair.baseline is None or pair.gated is None:
        return []
    differing = surroundings(pair.baseline, pair.gated)
    if pair.baseline.totals["counts"]["target"] != pair.gated.totals["counts"]["target"]:
        differing.append("number of targets seen")
    return differing


def surroundings(first: Run, second: Run) -> list[str]:
    """Which of data, weights, code, machine and packages differ between two runs."""
    a, b = first.record["provenance"], second.record["provenance"]
    differing = [name for name in ("data", "weights", "python", "git") if a.get(name) != b.get(name)]
    differing += [
        f"hardware.{key}" for key in ("cpu", "gpus", "threads") if a["hardware"].get(key) != b["hardware"].get(key)
    ]
    if _held_in(first) != _held_in(second):
        differing.append("type of the evaluated weights")
    packages = sorted(a["packages"].keys() | b["packages"].keys())
    return differing + [name for name in packages if a["packages"].get(name) != b["packages"].get(name)]


def _held_in(run: Run) -> set[str]:
    """Types of the weights while they were scored; all were float32 before it was written down."""
    return {evaluation.get("weights", "float32") for evaluation in run.record["evaluations"]}


def machine(run: Run) -> str:
    """The hardware of a run in words."""
    hardware = run.record["provenance"]["hardware"]
    gpus = [gpu["name"] for gpu in hardware["gpus"]]
    if gpus:
        return f"{len(gpus)} x {gpus[0]}"
    threads = hardware.get("threads", "?")
    return f"{hardware['cpu']}, {threads} {'thread' if threads == 1 else 'threads'}"


def task_interval(task: Mapping[str, Any], items: Results | None) -> Interval | None:
    """95 % interval of one task: from its items, or from its count of right answers where those are not kept."""
    if items is not None:
        return mean_interval(list(items[task["task"]].values()))
    return wilson(task["correct"], task["n"]) if "correct" in task else None


def mean_of_tasks(evaluation: Evaluation, items: Results | None) -> Interval | None:
    """95 % interval of the macro mean over the tasks that count in it, by a bootstrap stratified by task.

    Right and wrong answers are resampled alike whether each is kept or only their number.
    """
    counted = [task for task in evaluation["tasks"] if task["in_mean"]]
    if not counted:
        return None
    scoring = scoring_of(evaluation)
    if items is not None and scoring == Scoring():
        return macro_interval({task["task"]: list(items[task["task"]].values()) for task in counted})
    if items is not None:
        return score_interval(scoring, scored_units(evaluation, items))
    if scoring.unit == "mme" or not all("correct" in task for task in counted):
        return None
    answers = {task["task"]: _answers(task["correct"], task["n"]) for task in counted}
    if scoring == Scoring():
        return macro_interval(answers)
    units = {task: {str(index): value for index, value in enumerate(values)} for task, values in answers.items()}
    return score_interval(scoring, units)


def difference_of_means(pair: Pair, benchmark: str, *, task: str | None = None) -> Interval | None:
    """Gated minus baseline after the last step, paired by item; over the tasks in the mean, or one task.

    None where `comparable` is None.
    """
    both = comparable(pair, benchmark)
    if both is None:
        return None
    evaluation, ours, theirs = both
    names = [task] if task else [entry["task"] for entry in evaluation["tasks"] if entry["in_mean"]]
    names = [name for name in names if name in ours and name in theirs]
    if not names:
        return None
    return score_difference(
        scoring_of(evaluation), {name: ours[name] for name in names}, {name: theirs[name] for name in names}
    )


def detectable(pair: Pair, benchmark: str) -> float | None:
    """The smallest true difference of the two scores that their shared units find with 80 % power; None where
    `comparable` is None."""
    both = comparable(pair, benchmark)
    if both is None:
        return None
    evaluation, ours, theirs = both
    differences_by_task = shared_differences(scored_units(evaluation, ours), scored_units(evaluation, theirs))
    return minimum_detectable(standard_error(scoring_of(evaluation), differences_by_task))


def mcnemar_by_task(pair: Pair, benchmark: str) -> dict[str, McNemar]:
    """ability -> test of baseline (first) against gated run (second): McNemar's, exact, where the task is scored
    right or wrong, else by sign flips. Empty where `comparable` is None."""
    both = comparable(pair, benchmark)
    return {} if both is None else sign_tests(*both)


def sign_tests(evaluation: Mapping[str, Any], first: Results, second: Results) -> dict[str, McNemar]:
    """ability -> test of the units that two runs share, for every task of the evaluation."""
    tasks = [
        task for task in evaluation["tasks"] if first.get(task["task"], {}).keys() & second.get(task["task"], {})
    ]
    return {task["ability"]: _task_test(first[task["task"]], second[task["task"]]) for task in tasks}


def _task_test(first: dict[str, float], second: dict[str, float]) -> McNemar:
    """The counts of the units that differ, and the p value of the difference of the means: where answers are graded,
    more units may be better in the run whose mean is lower."""
    return replace(sign_test(first, second), p=sign_flip_test(Scoring(), {"": first}, {"": second}))


def comparable(pair: Pair, benchmark: str) -> tuple[Evaluation, Results, Results] | None:
    """The baseline's last evaluation and the items of both arms; None where an arm, its items, or an evaluation
    with the same prompts after the same step is missing."""
    if pair.baseline is None or pair.gated is None:
        return None
    first, second = pair.baseline.last(benchmark), pair.gated.last(benchmark)
    if first is None or second is None or first["step"] != second["step"]:
        return None
    return same_questions(pair.baseline, pair.gated, benchmark)


def same_questions(first: Run, second: Run, benchmark: str) -> tuple[Evaluation, Results, Results] | None:
    """The last evaluation of `one` and the units of both, whatever their steps; None where one of them, or its items,
    is missing, or where they were asked or scored in another way."""
    first_evaluation, second_evaluation = first.last(benchmark), second.last(benchmark)
    if first_evaluation is None or second_evaluation is None or not asked_alike(first_evaluation, second_evaluation):
        return None
    first_units, second_units = first.items(first_evaluation), second.items(second_evaluation)
    return None if first_units is None or second_units is None else (first_evaluation, first_units, second_units)


def asked_alike(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether two evaluations sent the same prompts and score the answers alike."""
    return first.get("prompt_hash") == second.get("prompt_hash") and scoring_of(first) == scoring_of(second)


def asked_otherwise(first: Run, second: Run, benchmark: str) -> list[str]:
    """What differs in how the last evaluations of two runs were asked; empty where they were asked alike, or where
    one of the two was not evaluated.

    Only runs that were asked alike may be compared for a verdict. What an old record does not hold is not compared.
    """
    first_evaluation, second_evaluation = first.last(benchmark), second.last(benchmark)
    if first_evaluation is None or second_evaluation is None:
        return []
    asked, other = _how_asked(first, first_evaluation), _how_asked(second, second_evaluation)
    return [name for name, value in asked.items() if value != other[name]]


def _how_asked(run: Run, evaluation: Mapping[str, Any]) -> dict[str, Any]:
    recipe = run.record["recipe"]
    return {
        "scoring": scoring_of(evaluation),
        "prompts": evaluation.get("prompt_hash"),
        "questions": evaluation.get("questions"),
        "frames": (recipe.get("data") or recipe.get("model") or {}).get("frames"),
        "limit": recipe["evaluate"].get("limit"),
    }


ANSWER_COUNTS: Final = {
    "guessed": "guessed",
    "unparsable": "not understood",
    "beyond_option": "more than an option",
}
"""Counts of an evaluation that qualify its score -> how tables call them. `beyond_option` is not recorded by
evaluations of before it was counted."""


def answer_count(evaluation: Mapping[str, Any] | None, kind: str) -> int | None:
    """One of `ANSWER_COUNTS`; None where it is not recorded."""
    counts = evaluation.get("counts", {}) if evaluation else {}
    return int(counts[kind]) if kind in counts else None


def teacher_cost(run: Run) -> dict[str, float | None]:
    """Seconds and device-hours of the reference pass that this run reads, whichever run paid for it."""
    reference = run.record.get("reference") or {}
    seconds = reference.get("seconds")
    if isinstance(seconds, dict):
        seconds = sum(seconds.values())
    if seconds is None:
        # A record without the store's own cost: what this run's ledger saw of it, if it did the pass.
        seconds = run.totals["seconds"]["reference"] or None
    hours = None if seconds is None else seconds * reference.get("devices", 1) / 3600
    return {"seconds": seconds, "device_hours": hours}


def chance(run: Run, evaluation: Evaluation) -> float | None:
    """Mean accuracy of uniform guessing over the tasks in the mean, where the items hold their number of options."""
    lines = read_items(run.folder, evaluation)
    if lines is None:
        return None
    expected: dict[str, list[float]] = {}
    for line in lines:
        options = line.get("option_loss")
        if not isinstance(options, list) or len(options) < 2:
            return None
        expected.setdefault(line["task"], []).append(1 / len(options))
    counted = [expected[task["task"]] for task in evaluation["tasks"] if task["in_mean"]]
    return sum(sum(part) / len(part) for part in counted) / len(counted) if counted else None


def benchmarks_of(runs: Iterable[Run]) -> list[str]:
    """Every benchmark that any of the runs was evaluated on, sorted."""
    return sorted({entry["benchmark"] for run in runs for entry in run.record["evaluations"]})


def _answers(right: int, n: int) -> list[float]:
    return [1.0] * right + [0.0] * (n - right)
