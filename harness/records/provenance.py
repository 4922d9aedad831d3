"""What a run ran on: packages, code version, hardware. No host name, user name, path or serial number."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import harness
import regate
from harness.common.threads import settings, usable_cores

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

EVENT: Final = "surroundings"
"""The ledger's event of what the first attempt runs on, and of an attempt that runs on something else than the one
before it. Ledgers of earlier versions have no first one."""
PACKAGES: Final = (
    "regate",
    "torch",
    "torchvision",
    "transformers",
    "accelerate",
    "peft",
    "safetensors",
    "tokenizers",
    "numpy",
    "scipy",
    "pyarrow",
    "av",
    "lmms-eval",
    "mlflow",
    "pydantic",
    "flash-attn",
    "liger-kernel",
)
"""Distributions whose version can change a number of the record; one that is not installed is left out."""

CODE: Final = ("regate", "harness", "recipes", "pyproject.toml")
"""What `dirty` looks at. Results, documents and notes may change without changing what a run does."""


def collect(*, threads: int | None = None) -> dict[str, Any]:
    """Packages, Python, platform, git and hardware of this process, ready for JSON.

    Args:
        threads: computing threads of one process (`torch.get_num_threads()`), which the caller knows without
            this module having to import torch. Measured times and low bits of results depend on it.
    """
    return {
        "packages": packages(),
        "python": platform.python_version(),
        "platform": _platform(),
        "git": git_state(),
        "hardware": hardware(threads=threads),
    }


def first(events: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """What the first attempt of a run ran on; None where its ledger does not say it."""
    return next((event["where"] for event in events if event["event"] == EVENT and event["attempt"] == 1), None)


def last(first: Mapping[str, Any], events: Iterable[Mapping[str, Any]]) -> Mapping[str, Any]:
    """What the newest attempt of a run ran on: what it was started on, or what a later attempt found changed."""
    return next((e["where"] for e in reversed([*events]) if e["event"] == EVENT), first)


def changes(first: Mapping[str, Any], events: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of each attempt that ran on something else than the one before: its number, and every key that differs with
    both values."""
    found, before = [], _leaves(first)
    for event in events:
        if event["event"] == EVENT:
            now = _leaves(event["where"])
            names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
            changed = {name: [before.get(name), now.get(name)] for name in names}
            if changed:
                found.append({"attempt": event["attempt"], "changed": changed})
            before = now
    return found


def _leaves(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, item in value.items():
        leaves |= _leaves(item, f"{prefix}{key}.") if isinstance(item, dict) else {f"{prefix}{key}": item}
    return leaves


def packages(names: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Installed versions by distribution name."""
    # The project runs from a checkout that was never installed, too.
    versions = {"regate": regate.__version__} if "regate" in names else {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def git_state(checkout: Path | None = None) -> dict[str, Any] | None:
    """Commit and cleanliness of the project's own checkout; None for an installed package or without git.

    Only a repository whose root holds this package counts: a package installed into an environment that lies
    inside somebody's own repository must not report that repository's commit.
    """
    root = checkout or Path(harness.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    commit = _git(root, "rev-parse", "HEAD")
    if commit is None:
        return None
    code = [name for name in CODE if (root / name).exists()]
    changes = _git(root, "status", "--porcelain", "--", *code) if code else ""
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def hardware(*, threads: int | None = None) -> dict[str, Any]:
    """CPU model and cores, memory in bytes, GPUs by name, the threads that the caller computes with, and OpenMP's
    settings."""
    import psutil

    return {
        "cpu": cpu_model(),
        "cores": psutil.cpu_count(logical=False),
        "logical_cores": psutil.cpu_count(),
        "usable_cores": usable_cores(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": gpus(),
        "threads": threads,
        "openmp": settings(),
    }


def cpu_model() -> str:
    """The processor's own name, or its architecture where the system does not tell."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def gpus() -> list[dict[str, Any]]:
    """Name, memory and driver of each NVIDIA GPU; empty without a driver. UUIDs and serials stay out."""
    try:
        import pynvml
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:  # no driver on this machine
        return []
    try:
        driver = _text(pynvml.nvmlSystemGetDriverVersion())
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return [
            {
                "name": _text(pynvml.nvmlDeviceGetName(handle)),
                "memory_bytes": int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
                "driver": driver,
            }
            for handle in handles
        ]
    finally:
        pynvml.nvmlShutdown()


def _platform() -> dict[str, str]:
    """System, architecture, C library and the number of the kernel (its free suffix may name a machine)."""
    library, version = platform.libc_ver()
    release = platform.release().split("-")[0]
    return {
        "system": platform.system(),
        "kernel": release,
        "machine": platform.machine(),
        "libc": f"{library} {version}".strip(),
    }


def _git(root: Path, *arguments: str) -> str | None:
    """The output of one git command, or None where git is absent or refuses."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    # A status must not take the repository's lock: somebody may be committing at this moment.
    command = ["git", "--no-optional-locks", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, env=environment, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


__all__ = [
    "CODE",
    "EVENT",
    "PACKAGES",
    "changes",
    "collect",
    "cpu_model",
    "git_state",
    "gpus",
    "hardware",
    "last",
    "packages",
]
