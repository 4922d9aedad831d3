"""A suite's arms by what they computed and how well they answer, and their FLOPs at the paper's models' shapes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from harness.analysis.curves import scale_of
from harness.analysis.frontier import at_published_shapes, frontier
from harness.plan.shapes import published_shapes
from harness.report import table as render
from harness.report.table import Cell, Column, Table

if TYPE_CHECKING:
    from harness.analysis.arms import Arms
    from harness.analysis.frontier import Point

_COLUMNS: Final = (
    Column("arm", ("arm",), right=False),
    Column("seeds", ("seeds",)),
    Column("training FLOPs", ("training_flops",)),
    Column("teacher FLOPs", ("teacher_flops",)),
    Column("of the baseline's", ("flops_of_baseline",)),
    Column("accuracy", ("accuracy", "low", "high")),
    Column("- baseline", ("difference", "difference_low", "difference_high")),
    Column("on the front", ("on_the_front",), right=False),
)


def frontier_table(arms: Arms, benchmark: str) -> Table | None:
    """One row an arm from the fewest FLOPs to the most; None with fewer than two arms to compare."""
    points = frontier(arms, benchmark)
    if len(points) < 2:
        return None
    runs = [run for by_seed in arms.runs.values() for run in by_seed.values()]
    scale, _ = scale_of(runs, benchmark)
    rows = []
    for point in sorted(points, key=lambda point: (point.part, point.arm)):
        ids = [run.id for name in (point.arm, arms.baseline) for run in arms.runs[name].values()]
        difference = point.difference
        rows.append(
            (
                render.label(point.arm, *dict.fromkeys(ids)),
                render.count(point.seeds),
                Cell(f"{point.flops:.3g}", (point.flops,)),
                _teacher(point),
                render.ratio(point.part),
                render.accuracy(point.score.interval, scale=scale, value=point.score.mean),
                _COLUMNS[6].empty()
                if difference is None
                else render.accuracy(difference.interval, scale=scale, signed=True, value=difference.mean),
                render.label("" if point.dominated else "yes"),
            )
        )
    title = f"Suite {arms.name}: accuracy on {benchmark} against FLOPs"
    return Table(f"suite_{arms.name}_frontier_{benchmark}", title, _COLUMNS, tuple(rows), _notes(arms))


def _notes(arms: Arms) -> tuple[str, ...]:
    return (
        "Training FLOPs: the ledger's own account, mean over the seeds: decoder, head, vision tower and projector, "
        "forward and backward, as each step computed them (what a frozen tower gave is computed once and kept, in "
        "every arm alike). Teacher FLOPs: one forward pass over the data, for samples of the mean length.",
        f"of the baseline's: training and teacher, as a part of the training FLOPs of {arms.baseline} with the same "
        "seed. - baseline: paired by seed, in points. [low, high]: 95 % t interval over the seeds; one seed has "
        "none.",
        "on the front: no other arm is at least as good for at most as many FLOPs, by the baseline's mean plus the "
        "mean difference and by both parts of the FLOPs: by the means alone, which intervals may not tell apart.",
    )


def _teacher(point: Point) -> Cell:
    if point.teacher is None:
        return _COLUMNS[3].missing()
    return Cell(f"{point.teacher:.3g}", (point.teacher,)) if point.teacher else _COLUMNS[3].empty()


def shapes_table(arms: Arms) -> Table | None:
    """The arms' FLOPs with the paper's models in place of the suite's; None with fewer than two arms."""
    rows_of = at_published_shapes(arms)
    if len(rows_of) < 2:
        return None
    shapes = published_shapes()
    columns = (
        Column("arm", ("arm",), right=False),
        *(Column(name, (_name(name), f"{_name(name)}_with_teacher")) for name in shapes),
    )
    rows = []
    for row in rows_of:
        cells = []
        for name in shapes:
            training, whole = row.by_model[name]
            shown = f"{training:.3f}" if whole == training else f"{training:.3f} ({whole:.3f})"
            cells.append(Cell(shown, (training, whole)))
        rows.append((render.label(row.arm, *(run.id for run in arms.runs[row.arm].values())), *cells))
    samples = "; ".join(f"{name} ({shape.recipe.name}): {shape.words}" for name, shape in shapes.items())
    notes = (
        "FLOPs of the whole training as a part of the baseline's; in brackets with the teacher's pass over the data. "
        "By the account of `harness plan` for rows that are packed in both arms: tower, connector, decoder and head, "
        "recomputation included. Nothing was run at these sizes: what accuracy an arm keeps there is not known.",
        "Steps are the suite's own: how many an arm has, how many of them are sparse, and how often a sample is "
        "seen. A number of layers (deep, from_layer, keep_below) is taken as the same part of the larger model's "
        "depth, and a part of the visual positions as exactly that part.",
        f"A sample: {samples}.",
    )
    return Table(
        f"suite_{arms.name}_flops_at_7b", f"Suite {arms.name}: FLOPs at 7B shapes", columns, tuple(rows), notes
    )


def _name(model: str) -> str:
    """A model's name in CSV."""
    return "".join(letter if letter.isalnum() else "_" for letter in model.lower())


__all__ = ["frontier_table", "shapes_table"]
