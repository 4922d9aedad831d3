"""Inputs that are neither files nor folders are refused by name: whoever read a pipe would wait for ever, and a
device never ends. Files of ours are in `test_damage.py`."""

from __future__ import annotations

import os
import signal
import socket
from typing import TYPE_CHECKING, Any

import pytest

from harness.common.errors import EnvironmentProblem
from harness.common.exits import explained
from harness.config.load import EVALUATION, RECIPE, SUITE, load, load_recipe
from harness.config.weight_files import missing_weights
from harness.data.records import read_records
from harness.models.checkpoint_files import weight_files
from harness.models.footprint import read_sizes
from harness.models.videollama2.image_processing import read_pixels
from harness.records.run_folder import lock_run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

WAIT_S = 20
TINY = "tiny_smoke_regate"
USER = "videollama2_regate"
LANGUAGE_MODEL = "Qwen2-7B-Instruct"


def run_folder(path: Path) -> None:
    with lock_run(path.parent):
        pass


def weights_folder(path: Path) -> Any:
    """A folder of weights with something odd beside the files that are asked for by name."""
    missing = missing_weights(load_recipe(USER, [f"paths.weights={path.parent.parent}"]))
    return [line for line in missing if str(path) in line]


READERS: dict[str, Callable[[Path], Any]] = {
    "recipe": lambda path: load(RECIPE, str(path)),
    "suite": lambda path: load(SUITE, str(path)),
    "evaluation": lambda path: load(EVALUATION, str(path)),
    "selection rule": lambda path: load_recipe(
        TINY, [f"gate.selection.file={path}", "gate.selection.function=score"]
    ),
    "questions": lambda path: load_recipe(TINY, [f"evaluate.benchmarks=[{{file: {path}}}]"]),
    "annotations": lambda path: list(read_records(path)),
    "run's folder": run_folder,
    "weights": weights_folder,
}


@pytest.fixture
def alarm() -> Iterator[None]:
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("waits"))
    signal.alarm(WAIT_S)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("kind", ["pipe", "socket", "device"])
@pytest.mark.parametrize("name", READERS)
@pytest.mark.usefixtures("alarm")
def test_it_is_refused_by_name(
    name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / LANGUAGE_MODEL / "generation_config.json" if name == "weights" else tmp_path / "odd"
    path.parent.mkdir(exist_ok=True)
    with socket.socket(socket.AF_UNIX) as end:
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "socket":
            monkeypatch.chdir(path.parent)  # the name of a socket is short
            end.bind(path.name)
        else:
            path.symlink_to("/dev/zero")
        if name == "weights":
            (line,) = READERS[name](path)
            assert kind in line
            return
        with pytest.raises(Exception) as raised:
            READERS[name](path)
    message, code = explained(raised.value)
    assert code in (2, 4), message
    assert kind in message
    assert str(path) in message


SETTINGS: dict[str, Callable[[Path], Any]] = {
    "config.json": lambda folder: read_sizes(folder, {}, "a model"),
    "model.safetensors.index.json": weight_files,
    "preprocessor_config.json": lambda folder: read_pixels(folder, "pad"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_damaged_settings_beside_weights_are_named(name: str, tmp_path: Path) -> None:
    for content in (b"", b'{"model_type": ', b"[1]\n", b"\xff\xfe\x00", b"[" * 100_000):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(EnvironmentProblem, match=f"{name}: cannot be read as settings of a model") as told:
            SETTINGS[name](tmp_path)
        assert "fetch" in str(told.value.hint)
