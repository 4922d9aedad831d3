"""The benchmarks of the paper's tables."""

from harness.benchmarks.paper.image import PUBLISHED

__all__ = ["PUBLISHED"]
