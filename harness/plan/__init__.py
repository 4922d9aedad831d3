"""The plan: a recipe resolved into numbers before anything is computed. No torch.

The gateable tokens are the targets; at 16 frames VideoLLaMA2.1 has 1352 visual tokens beside some 280 of text, so
a reduction of targets is not a reduction of all positions, and the plan never calls one of them just "tokens".
"""

from __future__ import annotations

import importlib.util
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from harness.benchmarks import BENCHMARKS, PAPER_BENCHMARKS, PaperBenchmark
from harness.common.errors import DataError, EnvironmentProblem, RecipeError
from harness.common.hashing import digest
from harness.common.numbers import percent
from harness.config.model import ATTENTION_PACKAGES
from harness.config.recipe import INSTALL_DEEPSPEED
from harness.config.weight_files import missing_weights
from harness.data.conversion import usable
from harness.data.sampler import steps_per_epoch
from harness.data.sources import DataSets, source_of
from harness.evaluation.files import benchmarks_root, missing_published
from harness.plan.same_training import same_training
from harness.plan.work import words_in
from regate.schedule import DualCycle

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from harness.common.progress import Progress
    from harness.config.recipe import GateConfig, Recipe
    from harness.data.sources import DataSet
    from harness.data.sources.source import Source
    from harness.plan.figures import Basis, Costs

SCHEMA: Final = 1
_COUNTED: Final = 20_000
"""Samples, about, whose words are counted."""
_SHOWN: Final = 6
"""Files of one origin that `render` names."""
_NOTABLE: Final = 0.02
"""Relative difference from the closed form of whole cycles that is worth a warning."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One point of the training at which the model is scored."""

    fraction: float
    step: int


@dataclass(frozen=True, slots=True)
class Targets:
    """Supervised tokens of the whole run. `scored` is what the gate is expected to leave, which is all of them for
    a baseline; rounding within a sample (k = max(1, floor(p N))) makes the run's own number a little smaller."""

    total: int
    scored: int
    per_sample: float
    basis: Basis


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run will do.

    Attributes:
        samples: training conversations.
        subset: which part of the annotations they are, in words; None for all of them.
        excluded: those left out because their media are known to be damaged (`data.damaged: exclude`).
        steps_per_epoch: optimizer steps; what does not fill a global batch is left out of the epoch.
        epochs: of the whole run, not always a whole number.
        keep_ratio: mean over the steps of p(t), Eq. 4; 1 for a baseline.
        expected_reduction: expected part of the targets that the run does not score, 1 - keep_ratio.
        closed_form: the same from whole cycles, (1 - W/T)(1 - F/C)(1 - p); None for a baseline.
        evaluations: ascending, each step once.
        to_make: what `prepare` makes by itself.
        missing_weights, missing_data: one line for each file that has to be brought, with where it comes from.
    """

    name: str
    run_id: str
    hardware: str | None
    samples: int
    samples_basis: Basis
    subset: str | None
    excluded: int
    steps_per_epoch: int
    left_out_per_epoch: int
    steps: int
    epochs: float
    global_batch: int
    dense_steps: int
    sparse_steps: int
    keep_ratio: float
    expected_reduction: float
    closed_form: float | None
    targets: Targets | None
    teacher_pass: bool
    evaluations: tuple[Evaluation, ...]
    benchmarks: tuple[str, ...]
    warnings: tuple[str, ...]
    to_make: tuple[str, ...]
    missing_weights: tuple[str, ...]
    missing_data: tuple[str, ...]

    @property
    def evaluation_steps(self) -> tuple[int, ...]:
        """Numbers of optimizer steps after which a model is kept and scored."""
        return tuple(evaluation.step for evaluation in self.evaluations)

    def as_dict(self) -> dict[str, Any]:
        return {"schema": SCHEMA, **asdict(self)}


class Planner:
    """The plans of one command, each made once: and once more only where the command itself changed what the plan was
    made from, by making the data or by finding media damaged. Recipes with the same data share one opened data set.
    """

    def __init__(self) -> None:
        self._data_sets = DataSets()
        self._plans: dict[str, tuple[Plan, DataSet | None]] = {}
        self._converted: dict[str, DataSet] = {}

    def plan(self, recipe: Recipe) -> Plan:
        """See `make_plan`."""
        source = source_of(recipe.data, recipe.paths, recipe.seed)
        missing = tuple(source.missing())
        data = None
        if not missing:
            data = self._usable(recipe, self._data_sets.open(recipe.data, recipe.paths, recipe.seed, decode=False))
        key = digest(recipe.model_dump(mode="json"))
        plan, planned_with = self._plans.get(key, (None, None))
        if plan is None or planned_with is not data:
            plan = _resolve(recipe, source, data, missing)
            self._plans[key] = plan, data
        return plan

    def costs(self, recipe: Recipe) -> Costs:
        """What the run takes and what it can show; see `harness.plan.costs.costs_of`."""
        from harness.plan.costs import costs_of

        plan = self.plan(recipe)
        data = self._plans[digest(recipe.model_dump(mode="json"))][1]
        return costs_of(recipe, plan, data)

    def open_data(self, recipe: Recipe, progress: Progress | None = None) -> DataSet:
        """The recipe's data, with every media file looked into; see `harness.data.sources.open_data`."""
        data = self._data_sets.open(recipe.data, recipe.paths, recipe.seed, progress=progress)
        return self._usable(recipe, data)

    def _usable(self, recipe: Recipe, opened: DataSet) -> DataSet:
        """Without the samples that the model refuses; the same object as long as they are the same."""
        data = usable(recipe, opened)
        return self._converted.setdefault(data.fingerprint, data) if data is not opened else opened


def make_plan(recipe: Recipe) -> Plan:
    """Resolve a recipe.

    Raises:
        RecipeError: the data are too few for one step, or their number is neither there nor stated.
        DataError: data are there and damaged.
    """
    return Planner().plan(recipe)


def _resolve(recipe: Recipe, source: Source, data: DataSet | None, missing: tuple[str, ...]) -> Plan:
    samples, basis = _samples(recipe, source, data)
    train, gate = recipe.train, recipe.gate
    steps_per_epoch = _steps_per_epoch(data, samples, train.global_batch)
    if steps_per_epoch == 0:
        raise RecipeError(
            f"{recipe.name}: train.global_batch is {train.global_batch}, more than the {samples} samples ({basis})",
            hint="lower train.global_batch, or train on more data",
        )
    steps = train.steps or max(1, round((train.epochs or 1.0) * steps_per_epoch))
    sparse_steps, keep_ratio = _schedule(gate, steps)
    points = {max(1, round(at * steps)): at for at in recipe.evaluate.at}
    plan = Plan(
        name=recipe.name,
        run_id=recipe.run_id,
        hardware=recipe.hardware,
        samples=samples,
        samples_basis=basis,
        subset=data.subset if data is not None else source.asked_subset,
        excluded=len(data.excluded) if data is not None else 0,
        steps_per_epoch=steps_per_epoch,
        left_out_per_epoch=samples - steps_per_epoch * train.global_batch,
        steps=steps,
        epochs=steps / steps_per_epoch,
        global_batch=train.global_batch,
        dense_steps=steps - sparse_steps,
        sparse_steps=sparse_steps,
        keep_ratio=keep_ratio,
        expected_reduction=1 - keep_ratio,
        closed_form=closed_form(gate, steps) if gate and gate.ramp is None else None,
        targets=_targets(source, data, steps * train.global_batch, keep_ratio),
        teacher_pass=gate is not None and gate.needs_reference,
        evaluations=tuple(Evaluation(at, step) for step, at in sorted(points.items())),
        benchmarks=recipe.evaluate.names,
        warnings=(),
        to_make=missing if source.made_here else (),
        missing_weights=tuple(missing_weights(recipe)),
        missing_data=(*(() if source.made_here else missing), *_missing_benchmarks(recipe)),
    )
    return _with_warnings(plan, recipe)


def _steps_per_epoch(data: DataSet | None, samples: int, global_batch: int) -> int:
    """As the sampler counts them where the data are there; else as if the media were mixed."""
    if data is None or data.modality is None:
        return samples // global_batch
    return steps_per_epoch(list(data.media_sizes.values()), global_batch)


def closed_form(gate: GateConfig, steps: int) -> float:
    """Expected reduction of whole cycles after the gate warm-up (Eq. 4), for a run of `steps`."""
    after = max(0.0, 1 - gate.warmup_steps / steps)
    return after * (1 - gate.dense_steps / gate.cycle_steps) * (1 - gate.keep_ratio)


def _schedule(gate: GateConfig | None, steps: int) -> tuple[int, float]:
    """The number of sparse steps, and the mean keep ratio; in closed form, so that no length of a run takes long."""
    if gate is None or not gate.has_sparse_steps:
        return 0, 1.0
    cycle = DualCycle.from_config(gate)
    return cycle.sparse_steps(steps), cycle.expected_keep(steps)


def _samples(recipe: Recipe, source: Source, data: DataSet | None) -> tuple[int, Basis]:
    if data is not None:
        return len(data.samples), "counted"
    if source.stated_samples is None:
        raise RecipeError(
            f"{recipe.name}: the data are not there and the recipe does not say how many samples they have",
            hint="put the files below paths.data, or state data.samples",
        )
    return source.stated_samples, "stated"


def _targets(source: Source, data: DataSet | None, visits: int, keep_ratio: float) -> Targets | None:
    basis: Basis
    if data is not None:
        per_sample, basis = _words_per_sample(data), "estimated"
    elif source.stated_targets:
        per_sample, basis = source.stated_targets, "stated"
    else:
        return None
    total = visits * per_sample
    return Targets(total=round(total), scored=round(total * keep_ratio), per_sample=per_sample, basis=basis)


def _words_per_sample(data: DataSet) -> float:
    """Words and punctuation marks of the answers, and one end marker a turn; of so many samples, spread evenly over
    a large set, that others would hardly change the mean."""
    count = 0
    places = range(0, len(data.samples), -(-len(data.samples) // _COUNTED))
    for place in places:
        answers = [turn.text for turn in data.samples[place].turns if turn.role == "assistant"]
        count += sum(words_in(text) + 1 for text in answers)
    return count / len(places)


def require(plan: Plan) -> None:
    """Name at once everything that the user must supply before the run can start.

    Raises:
        EnvironmentProblem: weights are missing, and perhaps data too.
        DataError: data are missing.
    """
    needed = {"weights": plan.missing_weights, "data": plan.missing_data}
    missing = {what: lines for what, lines in needed.items() if lines}
    if not missing:
        return
    lines = [f"{plan.name}: {' and '.join(missing)} are missing"]
    for what, files in missing.items():
        lines += [f"  {what}", *(f"    {line}" for line in by_origin(files))]
    problem = EnvironmentProblem if plan.missing_weights else DataError
    raise problem("\n".join(lines), hint="bring them, or point paths.weights and paths.data at where they are")


# --- warnings --------------------------------------------------------------------------------------------


def _missing_benchmarks(recipe: Recipe) -> list[str]:
    root = benchmarks_root(recipe.paths.data)
    published = [
        benchmark
        for name in recipe.evaluate.names
        if isinstance(benchmark := BENCHMARKS.get(name), PaperBenchmark)
    ]
    absent = [line for benchmark in published for line in missing_published(benchmark, root, recipe.evaluate.limit)]
    return absent + [line for entry in recipe.evaluate.files for line in entry.questions.missing_media(entry.file)]


def _with_warnings(plan: Plan, recipe: Recipe) -> Plan:
    warnings = [*_run_warnings(plan, recipe)]
    if recipe.gate is not None:
        warnings += _gate_warnings(plan, recipe.gate)
    values = {name: getattr(plan, name) for name in plan.__slots__}
    return Plan(**{**values, "warnings": tuple(warnings)})


def _run_warnings(plan: Plan, recipe: Recipe) -> Iterator[str]:
    yield from same_training(recipe)
    if len(plan.evaluations) < len(recipe.evaluate.at):
        yield "several points of evaluate.at fall on the same step; it is evaluated once"
    if not plan.benchmarks:
        yield "evaluate.benchmarks is empty: nothing is scored"
    if recipe.evaluate.limit is not None and any(name in PAPER_BENCHMARKS for name in plan.benchmarks):
        yield f"evaluate.limit is {recipe.evaluate.limit}: scores on a part of a benchmark are not the paper's"
    stated, counted = getattr(recipe.data, "samples", None), plan.samples + plan.excluded
    if plan.samples_basis == "counted" and stated is not None and plan.subset is None and stated != counted:
        yield f"data.samples states {stated:,}, and {counted:,} were counted: not the run that the recipe describes"
    if plan.left_out_per_epoch * 10 > plan.samples:
        yield (
            f"{plan.left_out_per_epoch} of {plan.samples} samples are left out of every epoch, since they do not "
            f"fill a global batch of {plan.global_batch}"
        )
    module, package = ATTENTION_PACKAGES.get(recipe.model.attention, ("", ""))
    if module and importlib.util.find_spec(module) is None:
        yield (
            f"model.attention {recipe.model.attention} needs a package that is not here (pip install {package}) and "
            "a CUDA GPU: training would refuse to start"
        )
    if recipe.devices.by_deepspeed and importlib.util.find_spec("deepspeed") is None:
        yield (
            f"devices.sharding {recipe.devices.sharding} needs DeepSpeed, which is not here ({INSTALL_DEEPSPEED}): "
            "training would refuse to start"
        )
    if recipe.train.checkpoint_every >= plan.steps > 100 and recipe.devices.checkpoint_minutes is None:
        yield "train.checkpoint_every is not less than the run: a killed training starts again from step 0"


def _gate_warnings(plan: Plan, gate: GateConfig) -> Iterator[str]:
    if plan.sparse_steps == 0:
        yield f"the gate elides nothing: {_why_dense(plan, gate)}; this is the baseline with extra steps"
        return
    if plan.steps <= plan.steps_per_epoch and gate.needs_difficulty:
        yield f"one epoch or less: no target is met a second time, so its difficulty is never read and {_left(gate)}"
    if gate.execution == "loss_only":
        yield "gate.execution is loss_only: every position is computed, so targets are saved but no time"
    if gate.ramp is not None and gate.ramp.loss is not None:
        yield (
            f"gate.ramp goes by the loss: targets and costs of the run are counted with gate.keep_ratio "
            f"{gate.keep_ratio:g}, and a run that comes to the ramp's end keeps {gate.ramp.to:g} there"
        )
    if plan.closed_form and abs(plan.expected_reduction - plan.closed_form) > _NOTABLE * plan.closed_form:
        yield (
            f"the schedule is cut: the last cycle ends after {plan.steps % gate.cycle_steps or gate.cycle_steps} of "
            f"{gate.cycle_steps} steps or the warm-up within a cycle, so {percent(plan.expected_reduction)} fewer "
            f"targets instead of the {percent(plan.closed_form)} of whole cycles"
        )
    if plan.targets and plan.targets.per_sample * gate.least_keep_ratio < 1:
        yield "gate.keep_ratio leaves less than one target of a mean sample; one is always kept"


def _why_dense(plan: Plan, gate: GateConfig) -> str:
    if gate.keep_ratio == 1:
        return "gate.keep_ratio is 1"
    if gate.warmup_steps >= plan.steps:
        return f"the gate warm-up ({gate.warmup_steps} steps) is as long as the run ({plan.steps})"
    return f"the {plan.steps} steps end before the first sparse step"


def _left(gate: GateConfig) -> str:
    """What the score goes by where the student's loss is the same for all targets."""
    if not gate.needs_reference:
        return "the selection goes by position"
    if "difficulty_BS" in gate.method.signals:
        return "the score is the reference loss alone"
    return "the score depends on the reference loss alone"


# --- words -----------------------------------------------------------------------------------------------


def render(plan: Plan, costs: Costs | None = None) -> list[str]:
    """The plan as lines for a person, with what it takes."""
    lines = [f"{plan.name}  (run {plan.run_id})"]
    lines += [f"  {label:<11} {text}" for label, text in _facts(plan)]
    for label, missing in (("weights", plan.missing_weights), ("data", plan.missing_data)):
        if missing:
            lines += [f"  missing {label}", *(f"    {line}" for line in by_origin(missing))]
    warnings = plan.warnings
    if costs is not None:
        lines += costs_lines(costs)
        warnings += costs.warnings
    lines += [f"  warning: {line}" for line in warnings]
    return lines


def costs_lines(costs: Costs) -> list[str]:
    """Every figure with its basis, and what it is from as a note at the end."""
    lines, notes = [], dict[str, int]()
    lines += ["  nodes", *(f"    {line}" for line in costs.nodes)] if costs.nodes else []
    for section, figures in costs.figures.items():
        lines.append(f"  {section}")
        width = max(len(figure.name) for figure in figures)
        for figure in figures:
            note = notes.setdefault(figure.source, len(notes) + 1)
            lines.append(f"    {figure.name:<{width}}  {figure.words} ({figure.basis} [{note}])")
    lines += ["  from", *(f"    [{note}] {source}" for source, note in notes.items())] if notes else []
    for heading, sentences in (("fetch", costs.fetch), ("the paper contradicts itself", costs.contradictions)):
        if sentences:
            lines += [f"  {heading}", *(f"    {sentence}" for sentence in sentences)]
    return lines


def by_origin(lines: Sequence[str]) -> list[str]:
    """Lines `file: where it comes from`, the files of one origin together, each origin named once."""
    files: dict[str, list[str]] = {}
    for line in dict.fromkeys(lines):  # two benchmarks may need the same files
        file, _, origin = line.partition(": ")
        files.setdefault(origin, []).append(file)
    shown: list[str] = []
    for origin, names in files.items():
        more = len(names) - _SHOWN
        shown += [*names[:_SHOWN], *([f"and {more} more"] if more > 0 else []), f"  {origin}"]
    return shown


def _facts(plan: Plan) -> Iterator[tuple[str, str]]:
    if plan.hardware:
        yield "meant for", plan.hardware
    excluded = f", {plan.excluded} damaged ones excluded" if plan.excluded else ""
    yield "samples", f"{plan.samples:,} ({plan.samples_basis}){excluded}"
    if plan.subset:
        yield "subset", plan.subset
    yield "length", f"{plan.steps:,} steps of {plan.global_batch} samples, {plan.epochs:.2f} epochs"
    yield (
        "epoch",
        f"{plan.steps_per_epoch:,} steps, {plan.left_out_per_epoch} samples left out of each",
    )
    if plan.closed_form is None:
        yield "gate", "none: every target is computed in every step (baseline)"
    else:
        yield "gate", f"{plan.dense_steps:,} dense and {plan.sparse_steps:,} sparse steps"
        yield (
            "reduction",
            f"{percent(plan.expected_reduction)} of the targets elided (whole cycles: {percent(plan.closed_form)})",
        )
        no_pass = "not needed: this gate reads no reference losses"
        yield "teacher", "one text-only pass over the data" if plan.teacher_pass else no_pass
    if plan.targets:
        counted = plan.targets
        amount = f"{counted.total:,} in the run, {counted.per_sample:.1f} a sample ({counted.basis})"
        yield "targets", amount if plan.closed_form is None else f"{amount}, {counted.scored:,} scored"
    else:
        yield "targets", "counted once the data are there"
    at = ", ".join(f"{step:,}" for step in plan.evaluation_steps)
    yield "evaluation", f"{', '.join(map(_benchmark, plan.benchmarks)) or 'nothing'} after steps {at}"
    for line in plan.to_make:
        yield "to make", line


def _benchmark(name: str) -> str:
    benchmark = BENCHMARKS.get(name)
    return f"{name} ({benchmark.items:,} items)" if isinstance(benchmark, PaperBenchmark) else name
