"""The paper's own numbers, from results/paper/tables.yaml: shown beside ours, never mixed with them."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from harness import render
from harness.errors import EnvironmentProblem
from harness.render import Cell
from harness.yamlmarks import read_yaml

if TYPE_CHECKING:
    from collections.abc import Iterable

MODELS: Final = {"videollama2": "VideoLLaMA2", "videochat2": "VideoChat2"}
"""Adapter -> the model's name in the paper."""
ARMS: Final = ("", "-ReGATE", "-ReGATE-extended", "-ReGATE-fast")

_FILE: Final = "tables.yaml"


def paper_tables() -> dict[str, Any]:
    """The transcribed tables: from the installed package data, or from the checkout's results/paper.

    Raises:
        EnvironmentProblem: neither is there.
    """
    try:
        text = resources.files("harness.paper").joinpath(_FILE).read_text(encoding="utf-8")
    except (ModuleNotFoundError, FileNotFoundError):
        checkout = Path(__file__).resolve().parent.parent / "results" / "paper" / _FILE
        if not checkout.exists():
            raise EnvironmentProblem(
                f"the paper's numbers ({_FILE}) are neither installed nor in the checkout", hint="install again"
            ) from None
        text = checkout.read_text(encoding="utf-8")
    # Not yaml.safe_load: to YAML 1.1, 83.82e6 is a word.
    content: dict[str, Any] = read_yaml(text, _FILE).data
    return content


def efficiency_rows(adapters: Iterable[str]) -> list[tuple[Cell, ...]]:
    """Rows of the paper's efficiency table for these models: run, arm, tokens, reduction, train GPU-hours, teacher
    GPU-hours, memory in GB, average accuracy. What the paper does not report is missing; the reduction follows
    from its tokens."""
    names = [MODELS[adapter] for adapter in sorted(set(adapters) & MODELS.keys())]
    if not names:
        return []
    table = paper_tables()["tables"]["table4_efficiency_acl"]
    rows: list[tuple[Cell, ...]] = []
    for name in names:
        baseline = None
        for label in (name + arm for arm in ARMS):
            if label not in table["rows"]:
                continue
            entry = dict(zip(table["columns"], table["rows"][label], strict=True))
            baseline = baseline or entry
            gated = entry is not baseline
            rows.append(
                (
                    render.label(label),
                    render.label("paper"),
                    render.large(entry["tokens"]),
                    render.percent(1 - entry["tokens"] / baseline["tokens"]) if gated else Cell("", ("",)),
                    _number(entry["train_gpu_hours"]),
                    _number(entry["teacher_gpu_hours"]) if gated else Cell("", ("",)),
                    _number(entry["avg_mem_gb_per_gpu"]),
                    _score(entry["avg_accuracy"], width=1),
                )
            )
    return rows


def benchmark_rows(adapters: Iterable[str], benchmark: str) -> list[tuple[str, Cell]]:
    """(row of the paper, its score in per cent) for these models, where the paper has the benchmark.

    The cell has the three values of an accuracy column; the paper reports no interval.
    """
    names = [MODELS[adapter] + arm for adapter in sorted(set(adapters) & MODELS.keys()) for arm in ARMS]
    if not names:
        return []
    found = []
    for table in paper_tables()["tables"].values():
        columns = [_plain(str(column)) for column in table.get("columns", ())] if isinstance(table, dict) else []
        if _plain(benchmark) not in columns or "regate" not in table:
            continue
        index = columns.index(_plain(benchmark))
        for name in names:
            if name in table["regate"]:
                value = table["regate"][name]["values"][index]
                found.append((name, _score(value)))
    return found


def _score(value: Any, *, width: int = 3) -> Cell:
    """A score of the paper, which it prints in per cent; CSV holds parts of one, as for our own, and `width`
    numbers, of which the bounds of an interval are not reported."""
    rest = (None,) * (width - 1)
    if value is None:
        return Cell(render.MISSING, (None, *rest))
    if isinstance(value, list):  # MME: cognition and perception, which are points and not per cent
        return Cell(" + ".join(f"{part:.1f}" for part in value), (sum(value), *rest))
    return Cell(f"{value:.1f}", (value / 100, *rest))


def _number(value: float | None) -> Cell:
    return Cell(render.MISSING, (None,)) if value is None else Cell(f"{value:.1f}", (value,))


def _plain(name: str) -> str:
    """A benchmark's name without case and punctuation: MVBench, mvbench; NExT-QA, nextqa."""
    return "".join(letter for letter in name.lower() if letter.isalnum())
