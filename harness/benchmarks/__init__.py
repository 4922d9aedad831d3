"""The benchmarks that a recipe may name: our own on the shapes, and the paper's thirteen.

`Benchmark` asks held-out questions of a data source of this project; `questions.py` says how. `Published` is one of
the paper's; `published.py` holds their entries. Imports neither torch nor lmms-eval: plans and tables read it.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Final

from harness.benchmarks.paper import PUBLISHED
from harness.benchmarks.spec import AnyBenchmark, Benchmark, Form, Origin, Published
from harness.common.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Mapping

_SHAPES: Final = ("colour", "shape", "direction", "count", "order", "change", "collision")

BENCHMARKS: Final[dict[str, AnyBenchmark]] = {
    "shapes": Benchmark(name="shapes", source="shapes", abilities=_SHAPES),
    **PUBLISHED,
}


def find(name: str, known: Mapping[str, AnyBenchmark] = BENCHMARKS) -> AnyBenchmark:
    """The benchmark of that name.

    Raises:
        RecipeError: there is none; the nearest names are given.
    """
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    meant = f"; did you mean {' or '.join(near)}?" if near else ""
    raise RecipeError(
        f"evaluate.benchmarks: unknown benchmark {name!r}{meant}", hint=f"known: {', '.join(sorted(known))}"
    )


__all__ = ["BENCHMARKS", "PUBLISHED", "AnyBenchmark", "Benchmark", "Form", "Origin", "Published", "find"]
