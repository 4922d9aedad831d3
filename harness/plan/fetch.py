"""A command for everything that is missing and that can be fetched. It is printed; nothing is fetched here."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from harness.config.weight_files import SHARDED, Requirement, absent_files
from harness.data.sources import source_of
from harness.evaluation.files import benchmarks_root, missing_published
from harness.plan.questions import asked

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.benchmarks import PaperBenchmark
    from harness.config.recipe import Recipe
    from harness.plan import Plan

LAYOUT = "its files then have to be laid out as docs/benchmarks.md says"


def fetch_commands(recipe: Recipe, plan: Plan) -> list[str]:
    """One command, or a line beginning with `#` where none can be given."""
    commands = [*_weights(recipe), *_data(recipe)]
    root = benchmarks_root(recipe.paths.data)
    for benchmark in asked(plan):
        if missing_published(benchmark, root, recipe.evaluate.limit):
            commands += _benchmark(benchmark, root)
    return list(dict.fromkeys(commands))


def _weights(recipe: Recipe) -> Iterator[str]:
    root = Path(recipe.paths.weights)
    for need in recipe.model.needs():
        value = getattr(recipe.model, need.field)
        if value is not None:
            yield from _requirement(need, root, value)
    gate = recipe.gate
    if gate is not None and gate.needs_reference and gate.reference.model is not None:
        folder = root / gate.reference.model
        if absent_files(folder, "config.json") or absent_files(folder, SHARDED):
            yield f"# {folder}: the repository of the teacher that gate.reference.model names"
    if gate is not None and gate.needs_reference and isinstance(gate.reference.pictures, str):
        folder = root / gate.reference.pictures
        if absent_files(folder, "config.json") or absent_files(folder, SHARDED):
            yield f"# {folder}: the multimodal teacher that gate.reference.pictures names"


def _requirement(need: Requirement, root: Path, value: str) -> Iterator[str]:
    target = root / value
    single = len(need.files) == 1
    if single and target.is_file():
        return
    absent = [file for name in need.files for file in absent_files(target, name)]
    if not absent:
        return
    if " " in need.hub_id:
        yield f"# {target}: {need.origin}"
        return
    is_file = single and target.suffix == Path(need.files[0]).suffix
    folder = target.parent if is_file else target
    names = ["model*.safetensors*" if name == SHARDED else name for name in need.files]
    yield _command(need.hub_id, folder, [] if need.whole else names)


def _command(repository: str, folder: Path, names: list[str], *more: str) -> str:
    """Single files are named, patterns are included."""
    patterns = any("*" in name for name in names)
    chosen = [part for name in names for part in (["--include", name] if patterns else [name])]
    return shlex.join(["hf", "download", repository, *more, *chosen, "--local-dir", str(folder)])


def _data(recipe: Recipe) -> Iterator[str]:
    source = source_of(recipe.data, recipe.paths, recipe.seed)
    missing = source.missing()
    if not missing:
        return
    if source.made_here:
        yield f"harness data make {recipe.name}"
        return
    for repository, folder in source.repositories:
        yield _command(repository, Path(recipe.paths.data) / folder, [], "--repo-type", "dataset")
    yield f"# media: {source.origin}"


def _benchmark(benchmark: PaperBenchmark, root: Path) -> Iterator[str]:
    repository, _, rest = benchmark.origin.repository.partition(" (revision ")
    revision = ["--revision", rest.rstrip(")")] if rest else []
    names = [benchmark.origin.rows] if benchmark.media == "image" and " " not in benchmark.origin.rows else []
    if benchmark.origin.access != "open":
        yield f"# {benchmark.name}: {benchmark.origin.access}"
    yield _command(repository, root / benchmark.folder, names, "--repo-type", "dataset", *revision)
