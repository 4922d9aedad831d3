"""What must hold between the keys of a recipe. The checks read the plain data, so that a recipe with a wrong type
in one place still gets every other message."""

from __future__ import annotations

import difflib
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Final

from harness.common.addresses import address_problem
from harness.config.data import SHAPES_VERSIONS
from harness.config.explain import Problem
from harness.config.model import SECTIONS
from harness.config.plain_data import value_at, whole_at
from harness.config.yaml_positions import dotted
from regate.config import GateConfig, KeepBelow, RampConfig, ReferenceConfig, VisualConfig
from regate.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence, Set

    from harness.config.plain_data import Finding
    from harness.config.yaml_positions import Document, Mark, Path


_PARTS: Final = {"visual": VisualConfig, "ramp": RampConfig, "keep_below": KeepBelow}
"""Keys of the gate that are sections themselves, or lists of them."""


def broken_rules(document: Document, benchmarks: Mapping[str, str | None], wrong: Set[Path]) -> list[Problem]:
    """Every rule between keys that the data break.

    Args:
        benchmarks: name to the data source whose questions it asks; None for a published one, which any model may
            be asked.
        wrong: paths whose own value is already known to be wrong.
    """
    data = document.data
    findings = [*_train(data), *_evaluate(data, benchmarks), *_model(data), *_data(data), *_gate(data, wrong)]
    findings += _track(data)
    return [Problem(_place(document, path), path, message) for path, message in findings]


def _place(document: Document, path: Path) -> Mark:
    """Where the value stands; of a whole section, where its key does."""
    return document.key_at(path) if isinstance(value_at(document.data, path), dict) else document.value_at(path)


def _train(data: Any) -> Iterator[Finding]:
    steps, epochs = ("train", "steps"), ("train", "epochs")
    if isinstance(value_at(data, ("train",)), dict):
        given = [path for path in (steps, epochs) if value_at(data, path) is not None]
        if len(given) == 2:
            yield epochs, "train.steps and train.epochs are both given; keep one of them"
        if not given:
            yield ("train",), "train has neither steps nor epochs; give one of them"
    whole, part = whole_at(data, ("train", "global_batch")), whole_at(data, ("train", "micro_batch"))
    if whole and part and whole % part:
        yield (
            ("train", "micro_batch"),
            f"train.micro_batch {part} does not divide train.global_batch {whole}; {_divisors(whole, part)}",
        )
    recompute = value_at(data, ("train", "recompute"))
    if recompute not in (None, "all", 0) and value_at(data, ("train", "gradient_checkpointing")) is not True:
        yield (
            ("train", "recompute"),
            "train.recompute says how much train.gradient_checkpointing does, which is off; set it to true",
        )
    betas = value_at(data, ("train", "optimizer", "betas"))
    for index, beta in enumerate(betas if isinstance(betas, list) else ()):
        if isinstance(beta, (int, float)) and not 0 <= beta < 1:
            yield (
                ("train", "optimizer", "betas", index),
                f"train.optimizer.betas[{index}] must be at least 0 and less than 1, got {beta}",
            )
    for path in (("seed",), ("data", "seed")):
        seed = whole_at(data, path)
        if seed is not None and seed >= 2**63:
            yield path, f"{dotted(path)} must be less than 2^63, got {seed}"


def _evaluate(data: Any, known: Mapping[str, str | None]) -> Iterator[Finding]:
    path: Path = ("evaluate", "at")
    at = value_at(data, path)
    if isinstance(at, list):
        if not at:
            yield path, "evaluate.at is empty; [1.0] evaluates the end of the training"
        for index in range(1, len(at)):
            previous, current = at[index - 1], at[index]
            if isinstance(previous, (int, float)) and isinstance(current, (int, float)) and current <= previous:
                yield (
                    (*path, index),
                    f"evaluate.at must go up: {current} stands after {previous}; "
                    "write each part of the training once",
                )
    path = ("evaluate", "benchmarks")
    names = value_at(data, path)
    if not isinstance(names, list):
        return
    source, version = value_at(data, ("data", "source")), whole_at(data, ("data", "version"), 1)
    for index, name in enumerate(names):
        if not isinstance(name, str):
            continue
        if name not in known:
            yield (*path, index), f"unknown benchmark {name}{_near(name, list(known))}"
        elif name in names[:index]:
            yield (*path, index), f"benchmark {name} is given twice"
        elif isinstance(source, str) and known[name] not in (None, source):
            yield (*path, index), f"benchmark {name} asks about the data of source {known[name]}, not of {source}"
        elif source == "shapes" and SHAPES_VERSIONS.get(name, version) != version:
            yield (
                (*path, index),
                f"benchmark {name} asks about data.version {SHAPES_VERSIONS[name]} of the shapes, not {version}",
            )


def _model(data: Any) -> Iterator[Finding]:
    attention, rows = value_at(data, ("model", "attention")), value_at(data, ("train", "rows"))
    if attention == "eager" and rows == "packed":
        yield ("model", "attention"), "model.attention eager does not compute packed rows: take train.rows: padded"
    if attention == "varlen" and rows == "padded":
        yield ("model", "attention"), "model.attention varlen computes packed rows only: take train.rows: packed"
    if value_at(data, ("gate", "execution")) == "layerwise" and rows == "packed":
        yield ("train", "rows"), "train.rows packed: gate.execution layerwise goes sample by sample; leave it out"
    adapter = value_at(data, ("model", "adapter"))
    if isinstance(adapter, str) and adapter in SECTIONS:
        yield from SECTIONS[adapter].broken_rules(data)


def _data(data: Any) -> Iterator[Finding]:
    annotations = value_at(data, ("data", "annotations"))
    if annotations == []:
        yield ("data", "annotations"), "data.annotations is empty; name at least one file"
    if isinstance(annotations, list):
        files = [name.get("file") if isinstance(name, dict) else name for name in annotations]
        for index, name in enumerate(files):
            if name in files[:index]:
                yield ("data", "annotations", index), f"{name} is given twice; every sample would be there twice"
    if value_at(data, ("data", "shuffle_turns")) is True and value_at(data, ("gate", "candidates")) == "text":
        yield (
            ("data", "shuffle_turns"),
            "data.shuffle_turns moves the prompts, and gate.candidates text keeps a loss for each token by its place",
        )


def _track(data: Any) -> Iterator[Finding]:
    """The value itself is not repeated: it may hold a password."""
    path: Path = ("track", "uri")
    uri = value_at(data, path)
    problem = address_problem(uri) if isinstance(uri, str) else None
    if problem:
        yield path, f"track.uri cannot be used: {problem}"


def _gate(data: Any, wrong: Set[Path]) -> Iterator[Finding]:
    """The ranges that the settings classes check themselves, one after the other: a class stops at its first
    mistake, and is not asked at all while another key of its section has the wrong type."""
    yield from _ranges(data, ("gate", "reference"), ReferenceConfig, wrong)
    yield from _ranges(data, ("gate",), GateConfig, wrong)


def _ranges(data: Any, path: Path, settings: type[Any], wrong: Set[Path]) -> Iterator[Finding]:
    section = value_at(data, path)
    if not isinstance(section, dict):
        return
    known = {field.name for field in fields(settings)} - {"reference"}
    given = {key: value for key, value in section.items() if key in known and (*path, key) not in wrong}
    if isinstance(given.get("selection"), dict):
        del given["selection"]  # a file, which its own class has read and checked
    given = _with_parts(given)
    while True:
        try:
            settings(**given)
        except ConfigError as error:
            first, _, rest = str(error).partition(" ")
            name = first.rstrip(":").rpartition(".")[2]
            if name in given or name not in section:
                yield (*path, name), f"{dotted((*path, name))} {rest}"
            if given.pop(name, None) is None:
                return
        else:
            return


def _with_parts(given: dict[str, Any]) -> dict[str, Any]:
    """Sections within the section as their classes, which have checked them; without those that are wrong."""
    built: dict[str, Any] = {}
    for key, value in given.items():
        part = _PARTS.get(key)
        try:
            if part is None or value is None:
                built[key] = value
            elif isinstance(value, list):
                built[key] = tuple(part(**entry) for entry in value)
            else:
                built[key] = part(**value)
        except (ConfigError, TypeError):
            continue
    return built


def _divisors(whole: int, near: int) -> str:
    below = max(part for part in range(1, min(near, whole) + 1) if whole % part == 0)
    return f"the next smaller size that does is {below}"


def _near(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    message = "did you mean " + " or ".join(close) + "?" if close else "known: " + ", ".join(sorted(known))
    return f"; {message}"
