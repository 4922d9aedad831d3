"""`doctor`: what a run needs and what this machine has, each with the command that mends it. It runs no run."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from harness.cli.arguments import recipes_of, split, written_folders
from harness.common.errors import HarnessError
from harness.common.files import unusable_folder
from harness.common.numbers import GB, gigabytes
from harness.config.load import load_paths
from harness.records.network import reachable
from harness.records.provenance import gpus

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from harness.config.recipe import Paths, Recipe
    from harness.plan.figures import Costs

State = Literal["ok", "warn", "fail"]
PYTHON: Final = (3, 11)
LEAST_DISK: Final = 8.0
"""GB that the tiny pair takes with everything that is installed for it."""
LEAST_SHARED: Final = 0.064
"""GB that a container has by default: too little for a clip of 16 frames on its way from a loading process."""
CODECS: Final = {"h264": "most videos", "hevc": "newer phones", "vp9": "webm", "av1": "newer webm", "mpeg4": "avi"}
PROBE_SECONDS: Final = 300
INSTALL: Final = 'pip install -c constraints.txt "regate[harness]"'


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at.

    Attributes:
        about: what, in a word or two.
        message: what is there.
        mend: the command or deed that mends it; None where nothing has to be.
    """

    about: str
    state: State
    message: str
    mend: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def examine(arguments: Sequence[str]) -> list[Check]:
    """All checks: of the machine, and of each recipe that is named.

    Raises:
        RecipeError: a recipe has mistakes.
    """
    names, overrides = split(arguments)
    recipes = recipes_of(arguments) if names else []
    checks = [_python(), *_packages(), *_torch(recipes), *_engines(recipes), _nodes(), *_codecs()]
    if not recipes:
        paths = load_paths(overrides)
        disk = _disk(paths, LEAST_DISK, "the tiny pair and all that is installed")
        checks += [*_folders(paths), disk, _shared_memory(0.0)]
    for recipe in recipes:
        checks += _recipe(recipe)
    return list(dict.fromkeys(checks))


def render(checks: Sequence[Check]) -> list[str]:
    """Lines for a person."""
    width = max(len(check.about) for check in checks)
    lines = []
    for check in checks:
        lines.append(f"{check.state:<4}  {check.about:<{width}}  {check.message}")
        if check.mend:
            lines += [f"      {'':<{width}}  -> {line}" for line in check.mend.splitlines()]
    counts = {state: sum(check.state == state for check in checks) for state in ("ok", "warn", "fail")}
    return [*lines, ", ".join(f"{count} {state}" for state, count in counts.items() if count)]


# --- the machine -----------------------------------------------------------------------------------------


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] >= PYTHON:
        return Check("python", "ok", version)
    return Check("python", "fail", f"{version}, and {PYTHON[0]}.{PYTHON[1]} is needed", "python3.11 -m venv .venv")


def _packages() -> Iterator[Check]:
    """What the project declares against what is installed, and against the versions that were tested together."""
    from packaging.requirements import Requirement

    try:
        declared = [Requirement(line) for line in metadata.requires("regate") or []]
    except metadata.PackageNotFoundError:  # a checkout that was never installed
        declared = [Requirement(line) for line in declared_here()]
    wanted = {need.name: need for need in declared if _wanted(need.marker)}
    bad = 0
    for name, need in sorted(wanted.items()):
        version = _version(name)
        if version is None:
            bad += 1
            yield Check("package", "fail", f"{name} is not installed ({need})", INSTALL)
        elif not need.specifier.contains(version, prereleases=True):
            bad += 1
            yield Check("package", "fail", f"{name} {version}, and {need} is needed", INSTALL)
    pins = pinned()
    other = [
        f"{name} {version} ({pins[name]})"
        for name in sorted(wanted)
        if name in pins and (version := _version(name)) is not None and version.split("+")[0] != pins[name]
    ]
    if other:
        yield Check("package", "warn", f"not the versions that were tested together: {', '.join(other)}", INSTALL)
    elif not bad:
        tested = ", the versions that were tested together" if pins else ""
        yield Check("packages", "ok", f"{len(wanted)} as declared{tested}")


def _wanted(marker: Any) -> bool:
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", "hf", "harness"))


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def checkout() -> Path:
    """The top of the checkout, where there is one."""
    return Path(__file__).resolve().parents[2]


def declared_here() -> list[str]:
    """Requirements of the checkout's pyproject.toml, all of them that the command line needs."""
    import tomllib

    file = checkout() / "pyproject.toml"
    if not file.is_file():
        return []
    project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
    extras = project.get("optional-dependencies", {})
    lines = [*project["dependencies"], *extras.get("hf", ()), *extras.get("harness", ())]
    return [line for line in lines if not line.startswith("regate[")]


def pinned() -> dict[str, str]:
    """Versions of constraints.txt; empty where the project is installed without it."""
    file = checkout() / "constraints.txt"
    if not file.is_file():
        return {}
    pins = re.findall(r"^([\w.-]+)==(\S+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    return {name.lower().replace("_", "-"): version for name, version in pins}


def _torch(recipes: Sequence[Recipe]) -> Iterator[Check]:
    """GPUs, driver, NCCL and the attention kernels that run, as a process of its own finds them."""
    cards = gpus()
    needed = max((_gpus_meant(recipe) for recipe in recipes), default=0)
    probed = probe()
    if isinstance(probed, str):
        yield Check("torch", "fail", probed, INSTALL)
        return
    yield Check("torch", "ok", f"{probed['torch']}, {f'CUDA {cuda}' if (cuda := probed['cuda']) else 'CPU'}")
    if cards and not probed["gpus"]:
        driver = cards[0]["driver"]
        message = f"{len(cards)} GPUs, driver {driver}, and torch reaches none of them"
        yield Check("driver", "fail", message, f"nvidia-smi\n{INSTALL}")
    elif cards:
        names = ", ".join(f"{card['name']} ({gigabytes(card['memory_bytes'])})" for card in cards)
        yield Check("GPUs", "ok", f"{names}, driver {cards[0]['driver']}")
    elif needed:
        yield Check("GPUs", "fail", f"none, and the recipe is meant for {needed}", "run it on a machine with GPUs")
    else:
        yield Check("GPUs", "ok", "none: everything runs on the CPU")
    if 0 < len(probed["gpus"]) < needed:
        mend = f"devices.processes={len(probed['gpus'])}"
        yield Check("GPUs", "warn", f"{len(probed['gpus'])}, and the recipe is meant for {needed}", mend)
    if len(probed["gpus"]) > 1:
        if probed["nccl"] is None:
            yield Check("NCCL", "fail", "not in this torch", INSTALL)
        else:
            yield Check("NCCL", "ok", probed["nccl"])
    yield from _kernels(probed["kernels"])
    yield from _kernels_asked(recipes, probed["kernels"])


def _nodes() -> Check:
    """Where this process stands among the nodes of a job: `harness run` would take them all."""
    from harness.training.launching.every_node import here

    try:
        node = here()
    except HarnessError as error:
        return Check("nodes", "fail", str(error), error.hint)
    if node.note:
        return Check("nodes", "warn", node.note, "srun --ntasks-per-node 1 harness run RECIPE")
    if node.nodes == 1:
        by = "" if node.launcher == "none" else f", started by {node.launcher}"
        return Check("nodes", "ok", f"one{by}")
    place = f"node {node.rank} of {node.nodes}, started by {node.launcher}; node 0 is {node.host}:{node.port}"
    return Check("nodes", "ok", place + (f"; process {node.local} has nothing to do" if node.local else ""))


def probe() -> dict[str, Any] | str:
    """What `harness.cli.probe` answers, or what went wrong."""
    command = [sys.executable, "-m", "harness.cli.probe"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"a first attention took more than {PROBE_SECONDS} s"
    try:
        answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, json.JSONDecodeError):
        said = done.stderr.strip().splitlines()
        return f"torch does not work: exit {done.returncode}{f', {said[-1]}' if said else ''}"
    return answer


def _kernels(kernels: dict[str, str]) -> Iterator[Check]:
    running = [name for name, outcome in kernels.items() if outcome == "runs"]
    wrong = [name for name, outcome in kernels.items() if outcome.startswith("computes")]
    yield Check("attention", "ok" if running else "fail", f"runs: {', '.join(running) or 'nothing'}")
    for name in wrong:
        yield Check("attention", "fail", f"{name} {kernels[name]}", f"pip uninstall {_package(name)}")
    others = [name for name in kernels if name not in running and name not in wrong]
    if others:
        yield Check("attention", "ok", f"not here: {', '.join(f'{name} ({kernels[name]})' for name in others)}")


def _kernels_asked(recipes: Sequence[Recipe], kernels: dict[str, str]) -> Iterator[Check]:
    """Kernels that recipes name, and that do not run here."""
    for recipe in recipes:
        asked = recipe.model.attention
        outcome = kernels.get({"flex": "flex_attention"}.get(asked, asked), "runs")
        if asked not in ("auto", "eager") and outcome != "runs":
            mend = f"pip install {_package(asked)}, or leave model.attention out"
            yield Check("attention", "fail", f"{recipe.name} asks for {asked}: {outcome}", mend)


def _engines(recipes: Sequence[Recipe]) -> Iterator[Check]:
    """What places the weights of a recipe, where that is no part of torch."""
    from harness.config.recipe import INSTALL_DEEPSPEED

    for recipe in recipes:
        if recipe.devices.by_deepspeed:
            there = importlib.util.find_spec("deepspeed") is not None
            message = f"{recipe.name} has devices.sharding {recipe.devices.sharding}, by DeepSpeed"
            said = f"{message} {metadata.version('deepspeed')}" if there else f"{message}: not installed"
            yield Check("sharding", "ok" if there else "fail", said, None if there else INSTALL_DEEPSPEED)


def _package(kernel: str) -> str:
    """What pip knows a kernel by: torch's own belong to torch."""
    from harness.config.model import ATTENTION_PACKAGES

    return ATTENTION_PACKAGES.get(kernel, ("torch", "torch"))[1]


def _gpus_meant(recipe: Recipe) -> int:
    """On each machine."""
    from harness.plan.memory import gpus_of, machines_of

    if recipe.model.generated or "GPU" not in (recipe.hardware or ""):
        return 0
    return gpus_of(recipe)[0] // machines_of(recipe)


def _codecs() -> Iterator[Check]:
    if importlib.util.find_spec("av") is None:
        yield Check("codecs", "fail", "PyAV is not installed", INSTALL)
        return
    import av

    absent = [f"{name} ({use})" for name, use in CODECS.items() if not _codec(av, name, "r")]
    if absent:
        yield Check("codecs", "warn", f"cannot read {', '.join(absent)}", "pip install --force-reinstall av")
    if not _codec(av, "libx264", "w"):
        yield Check("codecs", "fail", "cannot write H.264, which the shapes are", "pip install --force-reinstall av")
    elif not absent:
        yield Check("codecs", "ok", f"reads {', '.join(CODECS)}; writes H.264 (PyAV {av.__version__})")


def _codec(av: Any, name: str, mode: str) -> bool:
    try:
        av.codec.Codec(name, mode)
    except (ValueError, av.error.FFmpegError):
        return False
    return True


# --- folders ---------------------------------------------------------------------------------------------


def _folders(paths: Paths) -> Iterator[Check]:
    for key, folder in written_folders(paths):
        problem = unusable_folder(folder)
        if problem is not None:
            yield Check(f"paths.{key}", "fail", problem, f"paths.{key}=FOLDER")
        else:
            yield Check(f"paths.{key}", "ok", f"{folder}{'' if folder.is_dir() else ', not there yet'}")


def _existing(folder: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    absolute = folder.absolute()
    return next(place for place in (absolute, *absolute.parents) if place.is_dir())


def _disk(paths: Paths, needed: float, what: str) -> Check:
    free = shutil.disk_usage(_existing(Path(paths.results))).free
    message = f"{gigabytes(free)} free, {gigabytes(needed * GB)} needed for {what}"
    if free < needed * GB:
        return Check("disk", "fail", message, "paths.results=FOLDER paths.weights=FOLDER paths.data=FOLDER")
    return Check("disk", "ok", message)


def _shared_memory(clips: float) -> Check:
    """`clips`: GB that loading processes make ready."""
    place = Path("/dev/shm")
    if not place.is_dir():
        return Check("/dev/shm", "ok", "not there: the system has none")
    size = shutil.disk_usage(place).total
    message = f"{gigabytes(size)}, {gigabytes(clips * GB)} for clips on their way from the loading processes"
    mend = "train.workers=0, or docker run --shm-size=16g"
    if size < GB * max(clips, LEAST_SHARED * 1.1):
        return Check("/dev/shm", "fail" if clips * GB > size else "warn", message, mend)
    return Check("/dev/shm", "ok", message)


# --- a recipe --------------------------------------------------------------------------------------------


def _recipe(recipe: Recipe) -> Iterator[Check]:
    from harness.plan import Planner

    planner = Planner()
    try:
        plan, costs = planner.plan(recipe), planner.costs(recipe)
    except HarnessError as error:
        yield Check("data", "fail", str(error), error.hint)
        return
    yield from _folders(recipe.paths)
    total = sum(figure.high for figure in costs.figures["disk"])
    yield _disk(recipe.paths, total, recipe.name)
    workers = recipe.train.workers > 0
    clips = [figure.high for figure in costs.figures["memory of the machine"] if figure.name == "clips made ready"]
    yield _shared_memory(clips[0] if workers and clips else 0.0)
    yield from _memory(costs)
    yield _brought("weights", plan.missing_weights, costs)
    yield _brought("data", plan.missing_data, costs)
    if plan.to_make:
        yield Check("data", "warn", "not made yet", f"harness prepare {recipe.name}")
    yield from _work_of_nodes(recipe, teacher=plan.teacher_pass)
    yield _tracking(recipe)


def _work_of_nodes(recipe: Recipe, *, teacher: bool) -> Iterator[Check]:
    """What each node of this job would do, where there are several or several processes."""
    from harness.plan.nodes import node_lines
    from harness.training.launching.every_node import here

    try:
        nodes = here().nodes
    except HarnessError:
        return  # told by the check of the nodes
    each = recipe.devices.processes or max(1, len(gpus()))
    if nodes * each == 1:
        return
    try:
        for line in node_lines(recipe, nodes, each, teacher=teacher):
            yield Check(recipe.name, "ok", line)
    except HarnessError as error:
        yield Check(recipe.name, "fail", str(error), error.hint)


def _memory(costs: Costs) -> Iterator[Check]:
    import psutil

    needed = sum(figure.high for figure in costs.figures["memory of the machine"])
    installed = psutil.virtual_memory().total
    message = f"{gigabytes(installed)}, about {gigabytes(needed * GB)} needed"
    if installed < needed * GB:
        yield Check("memory", "fail", message, "a machine with more memory; train.workers lowers it a little")
    else:
        yield Check("memory", "ok", message)


def _brought(what: str, missing: Sequence[str], costs: Costs) -> Check:
    if not missing:
        return Check(what, "ok", "complete")
    commands = [line for line in costs.fetch if _fetches(line, what)]
    files = len(missing)
    return Check(what, "fail", f"{files} missing, first {missing[0].partition(': ')[0]}", "\n".join(commands) or None)


def _fetches(command: str, what: str) -> bool:
    """Whether a command fetches weights, or data. Words behind `#` belong to what stands beside them: `plan` has
    them all."""
    if command.startswith("#"):
        return False
    return ("--repo-type dataset" in command or command.startswith("harness data")) == (what == "data")


def _tracking(recipe: Recipe) -> Check:
    from harness.common.addresses import shown

    if not recipe.track.mlflow:
        return Check("tracking", "ok", "off")
    if recipe.track.uri is None:
        return Check("tracking", "ok", f"a file below {recipe.paths.results}")
    server = shown(recipe.track.uri)
    if reachable(recipe.track.uri):
        return Check("tracking", "ok", f"{server} answers")
    mend = "start the server; the next harness run sends what it missed"
    return Check("tracking", "warn", f"{server} does not answer; a run goes on without it", mend)
