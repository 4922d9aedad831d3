"""What a gate left out, as tables: words, kinds of words, and how far the choice stays the same."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from harness.analysis.choices.selection import SCHEMA, SHOWN
from harness.common.files import write_atomic
from harness.common.numbers import percent
from harness.report import table as render
from harness.report.table import Cell, Column, Table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from harness.analysis.choices.selection import Selection

_LISTS: Final = (
    'Kinds of words are closed lists of English function words (harness/analysis/choices/word_classes.py) '
    'and "content word" for all else; '
    "a word in several lists has the first of them in the order numeral, determiner, pronoun, auxiliary, "
    "conjunction, preposition, particle. No tagger is used."
)


def write_tables(results_dir: Path, selection: Selection) -> list[Path]:
    """The tables of one run in results_dir/selection, apart from those of the records alone; the files written.

    Markdown and CSV, and the words as JSON.
    """
    run, folder = selection["run"], results_dir / "selection"
    words = words_table(selection)
    texts = {
        f"elided_kinds_{run}.md": render.to_markdown(kinds_table(selection)),
        f"elided_kinds_{run}.csv": render.to_csv(kinds_table(selection)),
        f"elided_words_{run}.md": render.to_markdown(words_table(selection, limit=SHOWN)),
        f"elided_words_{run}.csv": render.to_csv(words),
        f"elided_words_{run}.json": json.dumps(words_json(selection), indent=1, ensure_ascii=False) + "\n",
    }
    if selection["overlap"] or selection["by_reference"]:
        overlap = overlap_table(selection)
        texts |= {
            f"selection_overlap_{run}.md": render.to_markdown(overlap),
            f"selection_overlap_{run}.csv": render.to_csv(overlap),
        }
    for name, text in texts.items():
        write_atomic(folder / name, text)
    return [folder / name for name in texts]


def words_json(selection: Selection) -> dict[str, Any]:
    """Words, kinds and grounded classes with their counts, one number of left-out targets for each epoch."""
    names = ("run", "selection", "keep_ratio", "epochs", "samples", "targets", "words_in_all")
    return {
        "schema": SCHEMA,
        **{name: selection[name] for name in names},
        **{name: selection[name] for name in ("kinds", "grounded", "words")},
    }


def words_table(selection: Selection, *, limit: int | None = None) -> Table:
    """The words whose targets are left out most, in the last epoch that is known."""
    columns = (Column("word", ("word",), right=False), Column("kind", ("kind",), right=False), *_columns(selection))
    rows = tuple(
        (render.label(row["word"]), render.label(row["kind"]), *_cells(row)) for row in selection["words"][:limit]
    )
    notes = [_what(selection), _LISTS]
    if limit is not None and selection["words_in_all"] > limit:
        notes.append(f"The first {limit} of {selection['words_in_all']:,} words; the CSV and JSON files go on.")
    return Table(f"elided_words_{selection['run']}", "Words left out most", columns, rows, tuple(notes))


def kinds_table(selection: Selection) -> Table:
    """The same by kind of word, and for the words that only the picture tells, where the data source marks them."""
    columns = (Column("kind of word", ("kind",), right=False), *_columns(selection))
    rows = [(render.label(row["kind"]), *_cells(row)) for row in selection["kinds"]]
    notes = [_what(selection), _LISTS]
    if selection["grounded"]:
        rows += [(render.label(f"grounded: {row['class']}"), *_cells(row)) for row in selection["grounded"]]
        rows.append((render.label("grounded: all"), *_cells(_sum(selection["grounded"]))))
        notes.append("grounded: words that only the picture tells, marked by the data source; they are part of the "
                     "kinds above.")  # fmt: skip
    rows.append((render.label("all"), *_cells(_sum(selection["kinds"]))))
    return Table(f"elided_kinds_{selection['run']}", "Targets left out, by kind of word", columns, tuple(rows),
                 tuple(notes))  # fmt: skip


def overlap_table(selection: Selection) -> Table:
    """How much of the choice stays from one epoch to the next."""
    columns = (
        Column("choices compared", ("first", "second"), right=False),
        Column("Jaccard index", ("jaccard",)),
        Column("of two random choices", ("chance",)),
    )
    rows = [
        (
            Cell(f"epoch {row['first'] + 1} and {row['second'] + 1}", (row["first"] + 1, row["second"] + 1)),
            render.ratio(row["jaccard"]),
            render.ratio(row["chance"]),
        )
        for row in selection["overlap"]
    ]
    last = selection["epochs"][-1] + 1
    if selection["by_reference"] is not None:
        alone = selection["by_reference"]
        name = Cell(f"reference loss alone and epoch {last}", ("reference", last))
        rows.append((name, render.ratio(alone["jaccard"]), render.ratio(alone["chance"])))
    notes = [
        "Jaccard index of a sample's kept targets, |A and B| / |A or B|, mean over samples. Random: the mean of two "
        "independent choices of as many targets.",
        _what(selection),
    ]
    if not selection["overlap"]:
        notes.append(_no_overlap(selection))
    return Table(f"selection_overlap_{selection['run']}", "How far the choice stays the same", columns, tuple(rows),
                 tuple(notes))  # fmt: skip


def _no_overlap(selection: Selection) -> str:
    if selection["selection"] == "reference":
        return "This gate reads the reference losses alone, so its choice is the same in every epoch."
    return (
        "One epoch's running losses are kept: a run keeps those of an earlier epoch only while a checkpoint needs "
        "them, so epochs cannot be compared."
    )


def _what(selection: Selection) -> str:
    epochs = ", ".join(str(epoch + 1) for epoch in selection["epochs"])
    return (
        f"{selection['run']}: the gate's choice ({selection['selection']}) for each of {selection['samples']:,} "
        f"samples at keep_ratio {selection['keep_ratio']:g}, made again from its stores for epoch {epochs}. Dense "
        "steps, which keep every target, are left aside, so the run itself left out less."
    )


def _columns(selection: Selection) -> tuple[Column, ...]:
    epochs = [epoch + 1 for epoch in selection["epochs"]]
    left = [Column(f"left out, epoch {epoch}", (f"left_out_{epoch}", f"part_{epoch}")) for epoch in epochs]
    return (
        Column("written", ("words",)),
        Column("targets", ("targets",)),
        *left,
        Column("reference loss", ("mean_loss_nats",)),
        Column("grounded", ("grounded",)),
    )


def _cells(row: Mapping[str, Any]) -> list[Cell]:
    targets = row["targets"]
    left = [_left_out(count, targets) for count in row["left_out"]]
    return [
        render.count(row["words"]),
        render.count(targets),
        *left,
        render.ratio(row["mean_loss"]),
        render.count(row["grounded"]),
    ]


def _left_out(count: int, targets: int) -> Cell:
    if not targets:
        return Cell("0", (count, None))
    return Cell(f"{count:,} ({percent(count / targets, 0)})", (count, count / targets))


def _sum(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    targets = sum(row["targets"] for row in rows)
    known = [row for row in rows if row["mean_loss"] is not None]
    loss = sum(row["mean_loss"] * row["targets"] for row in known)
    return {
        "words": sum(row["words"] for row in rows),
        "targets": targets,
        "grounded": sum(row["grounded"] for row in rows),
        "left_out": [sum(counts) for counts in zip(*(row["left_out"] for row in rows), strict=True)],
        "mean_loss": loss / targets if known and targets else None,
    }


__all__ = ["kinds_table", "overlap_table", "words_json", "words_table", "write_tables"]
