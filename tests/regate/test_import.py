"""What the package is made of, and what it imports."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import regate

FOLDER = Path(regate.__file__).parent
ALLOWED = {"torch", "numpy", "regate"}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            yield (node.module or "").split(".")[0]


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.name)
def test_torch_numpy_and_the_standard_library_only(path):
    allowed = {*ALLOWED, *sys.stdlib_module_names}
    allowed |= {"transformers"} if path.name in ("hf.py", "attention.py") else set()
    allowed |= {"flash_attn", "flash_attn_interface"} if path.name == "attention.py" else set()  # inside the kernels
    allowed |= {"pyarrow"} if path.name == "reference.py" else set()  # inside to_parquet
    allowed |= {"liger_kernel"} if path.name == "loss.py" else set()  # inside the liger backend
    assert set(imports(path)) <= allowed


def test_planning_needs_no_torch():
    code = (
        "import sys, regate; regate.GateConfig(); regate.DualCycle(.5, 128, 16, 100).expected_keep(1000); "
        "regate.ConfigError; assert not {'torch', 'numpy'} & set(sys.modules), 'torch was imported'"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=FOLDER.parent
    )
    assert done.returncode == 0, done.stderr


def test_every_public_name_loads():
    for name in regate.__all__:
        assert getattr(regate, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'prune'"):
        _ = regate.prune
