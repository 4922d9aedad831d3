"""The paper's thirteen benchmarks, one literal entry each (MME is two: its scores are two numbers), by its tables.

lmms-eval's own task asks and judges, on data below `paths.data`. What an entry says of lmms-eval 0.7.3 (task, metric,
split, words of the prompt, cap) is compared with the installed package by a test. Sizes, access and licences are as
the data cards gave them in 2026; `docs/benchmarks.md` tells why each split was chosen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from harness.benchmarks.paper.image import IMAGE
from harness.benchmarks.paper.long_video import LONG_VIDEO
from harness.benchmarks.paper.short_video import SHORT_VIDEO

if TYPE_CHECKING:
    from harness.benchmarks.spec import PaperBenchmark

PAPER_BENCHMARKS: Final[dict[str, PaperBenchmark]] = {
    benchmark.name: benchmark for benchmark in (*IMAGE, *LONG_VIDEO, *SHORT_VIDEO)
}
"""In the order of the paper's tables."""
