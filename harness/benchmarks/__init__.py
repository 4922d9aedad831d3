"""The benchmarks that a recipe may name: of this project's questions, the paper's thirteen, and others of lmms-eval.

`Benchmark` asks held-out questions of a data source of this project; `evaluation/multiple_choice.py` says how.
`PaperBenchmark` is asked and judged by a task of lmms-eval; those of the paper's tables stand in `paper/`, those
outside the paper (`paper=None`) here. Imports neither torch nor lmms-eval: plans and tables read it.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Final

from harness.benchmarks.paper import PAPER_BENCHMARKS
from harness.benchmarks.spec import AnyBenchmark, Benchmark, Form, Origin, PaperBenchmark, PaperCell
from harness.common.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Mapping

_OUTSIDE_THE_PAPER: Final[tuple[AnyBenchmark, ...]] = (
    Benchmark(
        name="shapes",
        source="shapes",
        abilities=("colour", "shape", "direction", "count", "order", "change", "collision"),
    ),
    Benchmark(
        name="shapes_2",
        source="shapes",
        abilities=("colour", "shape", "direction", "count", "order", "change"),
    ),
)

BENCHMARKS: Final[dict[str, AnyBenchmark]] = {
    benchmark.name: benchmark for benchmark in (*_OUTSIDE_THE_PAPER, *PAPER_BENCHMARKS.values())
}


def find(name: str, known: Mapping[str, AnyBenchmark] = BENCHMARKS) -> AnyBenchmark:
    """The benchmark of that name.

    Raises:
        RecipeError: there is none; the nearest names are given.
    """
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    suggestion = f"; did you mean {' or '.join(near)}?" if near else ""
    raise RecipeError(
        f"evaluate.benchmarks: unknown benchmark {name!r}{suggestion}", hint=f"known: {', '.join(sorted(known))}"
    )


__all__ = [
    "BENCHMARKS",
    "PAPER_BENCHMARKS",
    "AnyBenchmark",
    "Benchmark",
    "Form",
    "Origin",
    "PaperBenchmark",
    "PaperCell",
    "find",
]
