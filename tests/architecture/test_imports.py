"""Import walls: the contracts of pyproject.toml, and what is really imported in a fresh interpreter."""

from __future__ import annotations

import graphlib
import subprocess
import sys

import grimp

from .tree import ROOT

HEAVY = ("torch", "torchvision", "transformers", "accelerate", "mlflow", "lmms_eval", "peft")
LIGHT = (
    "regate",
    "regate.config",
    "regate.errors",
    "regate.schedule",
    "harness.benchmarks",
    "harness.cli.main",
    "harness.cli.inspect",
    "harness.cli.status",
    "harness.cli.start",
    "harness.cli.doctor",
    "harness.cli.run_names",
    "harness.data.check",
    "harness.data.sources",
    "harness.records.ledger",
    "harness.config.load",
    "harness.config.weight_files",
    "harness.analysis.runs",
    "harness.plan",
    "harness.plan.costs",
    "harness.config.recipe",
    "harness.records.record",
    "harness.report.table",
    "harness.analysis.statistics",
    "harness.report.tables",
    "harness.report.tables.compare",
)


def test_the_contracts_hold() -> None:
    script = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


def test_what_is_read_without_torch() -> None:
    script = (
        "import importlib, sys\n"
        f"for name in {LIGHT!r}:\n"
        "    importlib.import_module(name)\n"
        f"    heavy = [found for found in {HEAVY!r} if found in sys.modules]\n"
        "    if heavy: sys.exit(f'{name} imports {heavy}')"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_help_answers_at_once_and_without_torch() -> None:
    """What makes it slow is what it imports, so that is counted: time would say what else the machine does."""
    script = (
        "import sys; before = set(sys.modules); sys.argv = ['harness', '--help']\n"
        "import harness.cli.main\n"
        "try: harness.cli.main.main()\n"
        "except SystemExit: print(*(set(sys.modules) - before), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "Commands" in done.stdout
    imported = done.stderr.split()
    assert not {name.split(".")[0] for name in imported} & {*HEAVY, "pydantic", "yaml", "numpy"}
    rooms = {".".join(name.split(".")[:2]) for name in imported if name.startswith("harness.")}
    assert rooms == {"harness.cli", "harness.common"}
    assert len(imported) < 200


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Also not by way of others, and not inside functions; what only the type checker sees does not count."""
    graph = grimp.build_graph("regate", "harness", exclude_type_checking_imports=True, cache_dir=None)
    order = graphlib.TopologicalSorter(
        {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    )
    order.prepare()  # raises CycleError, with the circle
