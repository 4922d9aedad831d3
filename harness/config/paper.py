"""The file with the paper's own numbers: results/paper/tables.yaml, as it stands in the checkout or is installed."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any, Final

from harness.common.errors import EnvironmentProblem
from harness.config.yaml_positions import read_yaml

_FILE: Final = "tables.yaml"


def read_paper() -> dict[str, Any]:
    """What the file holds.

    Raises:
        EnvironmentProblem: it is neither installed nor in the checkout.
    """
    try:
        text = resources.files("harness.paper").joinpath(_FILE).read_text(encoding="utf-8")
    except (ModuleNotFoundError, FileNotFoundError):
        checkout = Path(__file__).resolve().parents[2] / "results" / "paper" / _FILE
        if not checkout.exists():
            raise EnvironmentProblem(
                f"the paper's numbers ({_FILE}) are neither installed nor in the checkout", hint="install again"
            ) from None
        text = checkout.read_text(encoding="utf-8")
    # Not yaml.safe_load: to YAML 1.1, 83.82e6 is a word.
    content: dict[str, Any] = read_yaml(text, _FILE).data
    return content
