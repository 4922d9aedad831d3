"""What pyproject.toml cannot say: every package below regate/ and harness/, found, beside two that are mapped.

The recipes and the paper's numbers stand at the top of the repository, where people look for them, and are installed
inside the package, where `harness run tiny_regate` finds them.
"""

from setuptools import find_packages, setup

MAPPED = {"harness.recipes": "recipes", "harness.paper": "results/paper"}
FOUND = find_packages(include=["regate", "regate.*", "harness", "harness.*"])

setup(packages=[*FOUND, *MAPPED], package_dir=MAPPED)
