"""What a report says of runs, side by side: asked and planned, happened and measured. Pure functions of records."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import yaml

from harness.analysis.attention.study import read_attention
from harness.analysis.choices.needed_words import read_needed
from harness.analysis.choices.selection import SHOWN, read_selection
from harness.analysis.curves import scale_of
from harness.analysis.option_loss import mean_option_loss
from harness.analysis.runs import (
    Pair,
    Run,
    benchmarks_of,
    difference_of_means,
    differences,
    mcnemar_by_task,
    mean_of_tasks,
    task_interval,
    teacher_cost,
)
from harness.analysis.summary import step_speedup
from harness.report import table as render
from harness.report.figures.accuracy import accuracy_figure, panels_of
from harness.report.figures.attention import attention_figure
from harness.report.figures.needed_words import needed_figure
from harness.report.figures.training_loss import loss_figure
from harness.report.pages.html import Block, Code, Losses, Page, Pictures, Section, Tabular, Text, Tile
from harness.report.table import Cell, Column, Table
from harness.report.tables.selection import kinds_table, overlap_table, words_table

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from harness.analysis.runs import Evaluation

Row = tuple[Cell, ...]
_NONE: Final = Cell("", ("",))
_KINDS: Final = {
    "positions": "positions, padding included",
    "valid": "positions",
    "visual": "of them visual",
    "special": "of them markers of the template",
    "prompt": "of them prompt",
    "target": "of them targets",
    "active": "positions computed",
    "scored": "targets computed (scored)",
}
"""The counts of a record, in the order that they are shown."""
_COUNTS: Final = {
    "scored": "items scored",
    "empty": "empty answers",
    "unparsable": "answers not understood",
    "guessed": "answers guessed",
    "beyond_option": "answers of more than an option",
    "errors": "items with an error",
}
"""The counts of an evaluation, likewise."""


def name_of(run: Run, runs: Sequence[Run]) -> str:
    """What a run is called among others: its arm where that tells them apart."""
    return run.arm if len({other.arm for other in runs}) == len(runs) else run.name


def runs_page(runs: Sequence[Run], pairs: Sequence[Pair], title: str) -> Page:
    """The report of a run, a pair or a few runs."""
    selections = [selection for run in runs if (selection := read_selection(run.folder)) is not None]
    sections = run_sections(runs, pairs, selections)
    lead = "; ".join(f"{name_of(run, runs)}: {run.id}" for run in runs) + "."
    return Page(title, lead, tuple(_tiles(runs, pairs)), tuple(sections), made_from(runs))


def run_sections(runs: Sequence[Run], pairs: Sequence[Pair], selections: Sequence[dict[str, Any]]) -> list[Section]:
    """Every section of a report of one run or of a few runs.

    Args:
        pairs: of these runs.
        selections: what is known of their gates' choices.
    """
    done = [run for run in runs if run.trained]
    sections = [asked(runs), *([planned(done), tokens(done), clocks(done), *losses(done)] if done else [])]
    sections += [accuracy(runs, pairs, benchmark) for benchmark in benchmarks_of(runs)]
    sections += [chosen(selection) for selection in selections]
    sections += [section for run in runs for section in (*needed(run), *attention(run))]
    return [*sections, provenance(runs)]


def made_from(runs: Sequence[Run]) -> str:
    """The line at the foot of a page."""
    ids = [run.id for run in runs]
    named = ", ".join(ids[:4]) + (f" and {len(ids) - 4} more" if len(ids) > 4 else "")
    return f"Made from the records and items of {named}. The same records always give the same page."


def facts(name: str, title: str, runs: Sequence[Run], rows: Sequence[tuple[str, Sequence[Cell]]],
          notes: Sequence[str] = ()) -> Table:  # fmt: skip
    """A table with one column a run; a row that is empty for all of them is left out."""
    columns = (Column("", ("what",), right=False), *(Column(name_of(run, runs), (run.id,)) for run in runs))
    shown = tuple(
        (render.label(label), *(render.label(cell.text) for cell in cells))
        for label, cells in rows
        if any(cell.text for cell in cells)
    )
    return Table(name, title, columns, shown, tuple(notes))


def asked(runs: Sequence[Run]) -> Section:
    """The recipes."""

    def text(run: Run) -> str:
        return str(yaml.safe_dump(run.record["recipe"], sort_keys=False, allow_unicode=True, width=100)).rstrip()

    rows = [
        ("seed", [_words(run.record["recipe"]["seed"]) for run in runs]),
        ("model", [_words(run.record["recipe"]["model"]["adapter"]) for run in runs]),
        ("data", [_words(run.record["recipe"]["data"]["source"]) for run in runs]),
        ("learning rate", [_trained_with(run, "lr") for run in runs]),
        ("samples of a step (global batch)", [_trained_with(run, "global_batch") for run in runs]),
        ("length", [_trained_with(run, "length") for run in runs]),
        ("selection", [_words(run.arm if run.gate else "no gate") for run in runs]),
        ("keep_ratio p", [_gate(run, "keep_ratio") for run in runs]),
        ("cycle C / dense F / warm-up W, steps", [_schedule(run) for run in runs]),
        ("EMA decay beta", [_gate(run, "ema_decay") for run in runs]),
        ("reference weight lambda", [_gate(run, "reference_weight") for run in runs]),
        ("alignment / execution", [_how(run) for run in runs]),
    ]
    words = tuple(dict.fromkeys(run.record["description"] for run in runs if run.record.get("description")))
    blocks: list[Block] = [Text(words)] if words else []
    blocks.append(Tabular(facts("asked", "What was asked", runs, rows)))
    blocks += [Code(f"Whole recipe of {run.id}", text(run)) for run in runs]
    return Section("recipe", "What was asked", tuple(blocks))


def planned(runs: Sequence[Run]) -> Section:
    """The plan beside what happened."""
    rows: list[tuple[str, Sequence[Cell]]] = [
        ("steps planned", [render.count(run.record["plan"]["steps"]) for run in runs]),
        ("steps done", [render.count(run.totals["steps"]) for run in runs]),
        ("samples seen", [render.count(run.totals["samples"]) for run in runs]),
        ("epochs begun", [render.count(run.totals["epochs_begun"]) for run in runs]),
        ("targets planned", [_planned(run, "total") for run in runs]),
        ("targets seen", [render.count(run.totals["counts"]["target"]) for run in runs]),
        ("targets to compute, planned", [_planned(run, "scored") for run in runs]),
        ("targets computed", [render.count(run.totals["counts"]["scored"]) for run in runs]),
        ("reduction by the schedule (Eq. 4)", [_gated(run, "expected_reduction") for run in runs]),
        ("the same, weighed by each step's targets", [_gated(run, "scheduled_reduction") for run in runs]),
        ("reduction measured", [_gated(run, "targets_reduction") for run in runs]),
        ("samples that could not be read", [render.count(run.totals["failed_samples"]) for run in runs]),
        ("steps skipped by the optimizer", [render.count(run.totals["skipped_steps"]) for run in runs]),
        ("attempts", [render.count(run.totals["attempts"]) for run in runs]),
        ("steps done again after a stop", [render.count(run.totals["repeated"]["steps"]) for run in runs]),
    ]
    table = facts("plan", "Plan and outcome", runs, rows)
    warnings = tuple(f"{run.id}, warned: {line}" for run in runs for line in run.record["plan"].get("warnings", ()))
    return Section("plan", "Plan and outcome", (Tabular(table), *([Text(warnings)] if warnings else [])))


def tokens(runs: Sequence[Run]) -> Section:
    """Positions by kind, and what was computed of them."""
    rows = [(label, [render.count(run.totals["counts"][kind]) for run in runs]) for kind, label in _KINDS.items()]
    rows.append(("part of the positions computed", [_part(run, "active", "valid") for run in runs]))
    rows.append(("part of the targets computed", [_part(run, "scored", "target") for run in runs]))
    notes = ["Positions and targets of all steps; a resumed run counts each step once."]
    return Section("tokens", "Tokens by kind", (Tabular(facts("tokens", "Tokens by kind", runs, rows, notes)),))


def clocks(runs: Sequence[Run]) -> Section:
    """Wall time by phase, device-hours, step times."""
    phases = list(dict.fromkeys(phase for run in runs for phase in run.totals["seconds"]))
    known = {"train": "training", "data": "waiting for data", "io": "loading and writing", "eval": "evaluation",
             "reference": "teacher's pass, paid by this run", "prepare": "making data and weights"}  # fmt: skip
    rows: list[tuple[str, Sequence[Cell]]] = [
        (known.get(phase, phase), [render.duration(run.totals["seconds"].get(phase)) for run in runs])
        for phase in phases
    ]
    rows += [
        ("training, CPU seconds", [_cpu(run, "cpu_seconds") for run in runs]),
        ("waited for a core meanwhile", [_cpu(run, "waited_seconds") for run in runs]),
        ("teacher's pass, whoever paid", [_duration(teacher_cost(run)["seconds"], run) for run in runs]),
        ("wall time in all", [render.duration(run.totals["wall_seconds"]) for run in runs]),
        ("devices", [render.count(run.totals["devices"]) for run in runs]),
        ("training, device-hours", [_hours(run.totals["device_hours"]["train"]) for run in runs]),
        ("all phases, device-hours", [_hours(run.totals["device_hours"].get("total")) for run in runs]),
        ("dense step, median", [_step(run, "dense") for run in runs]),
        ("sparse step, median", [_step(run, "sparse") for run in runs]),
        ("sparse to dense", [_ratio_of_steps(run) for run in runs]),
        ("the same by FLOPs alone", [_only(run, render.ratio(run.totals["sparse_flops_ratio"])) for run in runs]),
        ("training FLOPs, analytic", [_words(f"{run.totals['flops']:.3g}") for run in runs]),
        ("peak memory", [render.memory(run.totals["peak_bytes"]) for run in runs]),
    ]
    notes = ("Evaluation is a clock of its own and no training time. Of a training on a CPU only CPU seconds are "
             "compared, the two ratios of steps among them.", "Peak memory: allocated on a GPU, or resident "
             "in the process on a CPU.")  # fmt: skip
    return Section("clocks", "Clocks", (Tabular(facts("clocks", "Clocks", runs, rows, notes)),))


def losses(runs: Sequence[Run]) -> list[Section]:
    """The loss over the steps of each training, where its ledger is kept beside the record."""
    figure = loss_figure(runs, [name_of(run, runs) for run in runs])
    if figure is None:
        return []
    shown = "Loss of each training over its steps, baseline and gated over each other, dense and sparse steps apart."
    note = (
        "Faint: single steps, or means of neighbouring ones where there are many; strong: running means. A sparse "
        "step's loss is over the targets that the gate chose, so only the dense steps compare the arms."
    )
    return [Section("loss", "Loss during the training", (Pictures(((shown, figure),), note),))]


def accuracy(runs: Sequence[Run], pairs: Sequence[Pair], benchmark: str) -> Section:
    """Scores after the last step with their intervals, differences of the pairs, and the curves."""
    whole = [pair for pair in pairs if pair.baseline is not None and pair.gated is not None]
    blocks: list[Block] = [
        Pictures(
            tuple((_alt(pair, benchmark, which), accuracy_figure(pair, benchmark, [which])) for which in panels),
            f"Accuracy of {pair.name} on {benchmark} against what had been computed.",
        )
        for pair in pairs
        if (panels := panels_of(pair.runs)) and any(run.last(benchmark) for run in pair.runs)
    ]
    blocks.append(Tabular(_scores(runs, benchmark)))
    blocks += [Tabular(_differences(pair, benchmark)) for pair in whole]
    for pair in whole:
        differing = differences(pair)
        if differing:
            blocks.append(Text((f"The two runs of {pair.name} also differ in {', '.join(differing)}.",)))
    return Section(f"accuracy-{benchmark}", f"Accuracy on {benchmark}", tuple(blocks))


def chosen(selection: dict[str, Any]) -> Section:
    """What a gate kept and left out: Figure 3, words, overlap."""
    blocks: list[Block] = [Losses(selection)] if selection["panels"] else []
    blocks += [
        Tabular(kinds_table(selection)),
        Tabular(words_table(selection, limit=SHOWN), folded=True),
        Tabular(overlap_table(selection)),
    ]
    return Section(f"chosen-{selection['run']}", f"What {selection['run']} kept and left out", tuple(blocks))


def needed(run: Run) -> list[Section]:
    """The words that flipped items ask for, where `harness.analysis.choices.needed_words` looked them up."""
    needed = read_needed(run.folder)
    if needed is None:
        return []
    drawn = {benchmark: needed_figure(needed, benchmark) for benchmark in needed["benchmarks"]}
    title = f"What {run.id} left out of the words that items ask for"
    shown = tuple((f"{title}: {benchmark}", figure) for benchmark, figure in drawn.items() if figure is not None)
    words = f"Items that flip between {needed['baseline']} and this run, and their nearest training answers."
    return [Section(f"needed-{run.id}", title, (Pictures(shown, words),))] if shown else []


def attention(run: Run) -> list[Section]:
    """Where the run and its baseline look, where `harness.analysis.attention.study` read it."""
    attention = read_attention(run.folder)
    if attention is None:
        return []
    title = f"Where {run.id} looks"
    drawn = tuple((f"{title}: {name}", attention_figure(attention, name)) for name in attention["benchmarks"])
    words = f"Attention of {attention['baseline']} and this run on visual positions as the right answer is written."
    return [Section(f"attention-{run.id}", title, (Pictures(drawn, words),))]


def provenance(runs: Sequence[Run]) -> Section:
    """On what the runs were made, and from what."""
    where = [run.record["provenance"] for run in runs]
    packages = sorted({name for place in where for name in place["packages"]})
    rows: list[tuple[str, Sequence[Cell]]] = [
        ("finished", [_words(str(run.record.get("finished", ""))[:19].replace("T", " ")) for run in runs]),
        ("code", [_words(_commit(place)) for place in where]),
        ("machine", [_words(_machine(place)) for place in where]),
        ("threads of a process", [_words(place["hardware"].get("threads", "")) for place in where]),
        ("Python", [_words(place["python"]) for place in where]),
        *((name, [_words(place["packages"].get(name, "")) for place in where]) for name in packages),
        *(
            (f"fingerprint of the {name}", [_words((place.get(name) or "")[:16]) for place in where])
            for name in ("data", "weights", "reference")
        ),
    ]
    note = "A run's id ends with the digest of its recipe; fingerprints are cut to 16 of 64 digits."
    title = f"Provenance of {runs[0].id}" if len(runs) == 1 else "Provenance"
    return Section("provenance", title, (Tabular(facts("provenance", title, runs, rows, [note])),))


# --- numbers to see first -------------------------------------------------------------------------------


def _tiles(runs: Sequence[Run], pairs: Sequence[Pair]) -> list[Tile]:
    tiles = []
    for benchmark in benchmarks_of(runs):
        scale, _ = scale_of(runs, benchmark)
        for run in runs:
            entry = run.last(benchmark)
            mean = None if entry is None else mean_of_tasks(entry, run.items(entry))
            if mean is not None:
                note = f"95 % [{scale * mean.low:.1f}, {scale * mean.high:.1f}]"
                tiles.append(Tile(f"{benchmark}: {name_of(run, runs)}", f"{scale * mean.value:.1f}", note))
        for pair in pairs:
            difference = difference_of_means(pair, benchmark)
            if difference is not None:
                ends = f"95 % [{scale * difference.low:+.1f}, {scale * difference.high:+.1f}], paired by item"
                tiles.append(Tile(f"{benchmark}: difference", f"{scale * difference.value:+.1f}", ends))
    for run in (run for run in runs if run.trained):
        totals = run.totals
        note = "" if run.gate is None else f"{render.percent(totals['targets_reduction']).text} fewer than all"
        label = "" if len(runs) == 1 else f": {name_of(run, runs)}"
        tiles.append(Tile(f"targets computed{label}", render.count(totals["counts"]["scored"]).text, note))
        time = render.train_time(totals["seconds"]["train"], totals.get("cpu_seconds")).text
        tiles.append(Tile(f"training time{label}", time))
    return tiles


# --- accuracy --------------------------------------------------------------------------------------------


def _scores(runs: Sequence[Run], benchmark: str) -> Table:
    last = {run.id: run.last(benchmark) for run in runs}
    scale, _ = scale_of(runs, benchmark)
    tasks = {task["task"]: task for entry in last.values() if entry for task in entry["tasks"]}

    def of(run: Run, read: Callable[[Run, Evaluation], Cell]) -> Cell:
        entry = last[run.id]
        return render.accuracy(None) if entry is None else read(run, entry)

    rows: list[tuple[str, Sequence[Cell]]] = [
        (
            "mean",
            [of(run, lambda run, e: render.accuracy(mean_of_tasks(e, run.items(e)), scale=scale)) for run in runs],
        )
    ]
    for name, task in tasks.items():
        label = f"{task['ability']} ({task['n']:,})" + ("" if task["in_mean"] else ", not in the mean")
        rows.append((label, [of(run, _task_reader(name, scale)) for run in runs]))
    rows.append(("cross entropy of the right option, nats", [of(run, _option_loss) for run in runs]))
    for key, label in _COUNTS.items():
        rows.append((label, [of(run, _count_reader(key)) for run in runs]))
    rows.append(("after step", [of(run, lambda _, entry: render.count(entry["step"])) for run in runs]))
    note = (
        "[low, high]: 95 % over the items, with the trained model fixed; the spread between seeds is not in it. One "
        "ability: Wilson. Mean: bootstrap within each ability."
    )
    return facts(f"scores_{benchmark}", "After the last step", runs, rows, [note])


def _task_reader(name: str, scale: float) -> Callable[[Run, Evaluation], Cell]:
    def read(run: Run, entry: Evaluation) -> Cell:
        task = next((task for task in entry["tasks"] if task["task"] == name), None)
        return render.accuracy(None if task is None else task_interval(task, run.items(entry)), scale=scale)

    return read


def _option_loss(run: Run, entry: Evaluation) -> Cell:
    loss = mean_option_loss(run, entry)
    return _NONE if loss is None else Cell(f"{loss:.3f}", (loss,))


def _count_reader(key: str) -> Callable[[Run, Evaluation], Cell]:
    return lambda _, entry: render.count(entry["counts"][key]) if key in entry["counts"] else _NONE


def _differences(pair: Pair, benchmark: str) -> Table:
    assert pair.baseline is not None
    entry = pair.baseline.last(benchmark)
    scale, _ = scale_of(pair.runs, benchmark)
    tests = mcnemar_by_task(pair, benchmark)
    columns = (
        Column("ability", ("ability",), right=False),
        Column("difference", ("difference", "low", "high")),
        Column("only baseline : only gated right", ("only_baseline", "only_gated")),
        Column("p (exact McNemar)", ("p",)),
    )
    mean = difference_of_means(pair, benchmark)
    rows: list[Row] = [(render.label("mean"), render.accuracy(mean, scale=scale, signed=True), _NONE_TWO, _NONE)]
    for task in entry["tasks"] if entry and mean is not None else ():
        value = difference_of_means(pair, benchmark, task=task["task"])
        test = tests.get(task["ability"])
        both = _NONE_TWO if test is None else Cell(f"{test.only_first} : {test.only_second}",
                                                   (test.only_first, test.only_second))  # fmt: skip
        p = _NONE if test is None else Cell(f"{test.p:.2g}", (test.p,))
        rows.append((render.label(task["ability"]), render.accuracy(value, scale=scale, signed=True), both, p))
    notes = ("Gated run minus baseline, in points, paired by item; [low, high]: 95 % bootstrap. One seed: the spread "
             "between seeds is not in it.",)  # fmt: skip
    return Table(f"difference_{benchmark}", f"{pair.name} minus its baseline", columns, tuple(rows), notes)


_NONE_TWO: Final = Cell("", ("", ""))


def _alt(pair: Pair, benchmark: str, which: str) -> str:
    """The figure in words, for those who cannot see it."""
    scale, _ = scale_of(pair.runs, benchmark)
    ends = []
    for run in pair.runs:
        entry = run.last(benchmark)
        mean = None if entry is None else mean_of_tasks(entry, run.items(entry))
        if entry is not None and mean is not None:
            done = entry["progress"]
            amounts = {"targets": f"{done['scored']:,} targets", "time": f"{done['train_seconds']:.0f} s of training",
                       "device_hours": f"{done['train_device_hours']:.3g} device-hours"}  # fmt: skip
            ends.append(f"{run.arm} ends at {scale * mean.value:.1f} after {amounts[which]}")
    return f"Accuracy on {benchmark}: {'; '.join(ends)}."


# --- cells -----------------------------------------------------------------------------------------------


def _words(value: Any) -> Cell:
    return render.label(str(value))


def _trained_with(run: Run, what: str) -> Cell:
    """A setting of the training; empty for weights that were evaluated as they are."""
    train = run.record["recipe"].get("train")
    if train is None:
        return _NONE
    if what == "lr":
        return _words(f"{train['optimizer']['lr']:g}")
    if what == "global_batch":
        return render.count(train["global_batch"])
    return _words(f"{train['epochs']:g} epochs" if train.get("epochs") else f"{train['steps']:,} steps")


def _only(run: Run, cell: Cell) -> Cell:
    """The cell for a gated run; empty for a baseline, where it makes no sense."""
    return _NONE if run.gate is None else cell


def _gate(run: Run, key: str) -> Cell:
    return _NONE if run.gate is None else _words(f"{run.gate[key]:g}")


def _schedule(run: Run) -> Cell:
    gate = run.gate
    return (
        _NONE if gate is None else _words(f"{gate['cycle_steps']} / {gate['dense_steps']} / {gate['warmup_steps']}")
    )


def _how(run: Run) -> Cell:
    return _NONE if run.gate is None else _words(f"{run.gate['align']} / {run.gate['execution']}")


def _gated(run: Run, key: str) -> Cell:
    return _only(run, render.percent(run.totals[key]))


def _planned(run: Run, key: str) -> Cell:
    targets = run.record["plan"].get("targets") or {}
    if targets.get(key) is None:
        return _NONE
    return Cell(f"{targets[key]:,} ({targets['basis']})", (targets[key],))


def _part(run: Run, part: str, whole: str) -> Cell:
    counts = run.totals["counts"]
    return render.percent(counts[part] / counts[whole] if counts[whole] else None)


def _duration(seconds: float | None, run: Run) -> Cell:
    return _NONE if run.record["reference"] is None else render.duration(seconds)


def _cpu(run: Run, key: str) -> Cell:
    seconds = run.totals.get(key)
    return _NONE if seconds is None else render.duration(seconds)


def _hours(hours: float | None) -> Cell:
    return _NONE if hours is None else Cell(f"{hours:.3g}", (hours,))


def _step(run: Run, kind: str) -> Cell:
    step = run.totals["step_seconds"]
    median, number = step[f"{kind}_median"], step[f"n_{kind}"]
    return _NONE if median is None else Cell(f"{render.duration(median).text} ({number:,} steps)", (median,))


def _ratio_of_steps(run: Run) -> Cell:
    speedup = step_speedup(run)
    return _NONE if speedup is None else render.ratio(1 / speedup)


def _commit(where: dict[str, Any]) -> str:
    git = where.get("git")
    return "" if not git else f"{git['commit'][:12]}{', changed since' if git['dirty'] else ''}"


def _machine(where: dict[str, Any]) -> str:
    hardware = where["hardware"]
    gpus = [gpu["name"] for gpu in hardware["gpus"]]
    return ", ".join(gpus) if gpus else f"{hardware['cpu']}, {hardware['cores']} cores"


__all__ = [
    "accuracy",
    "asked",
    "chosen",
    "clocks",
    "facts",
    "made_from",
    "name_of",
    "planned",
    "provenance",
    "run_sections",
    "runs_page",
    "tokens",
]
