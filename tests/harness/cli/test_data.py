"""`data check`, `prepare` and `data show` on a user's files: one verdict, and every fault at once."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from tests.harness.cli.command import Command
from tests.harness.worlds.clips import clip

if TYPE_CHECKING:
    from pathlib import Path

RECIPE = """name: case
description: a user's clips
seed: 0
model: {{adapter: tiny_videollama2, hidden: 32, layers: 1, heads: 2}}
data: {{source: llava, annotations: [a.json], media: media, frames: 4, damaged: {damaged}}}
train: {{steps: 2, global_batch: 2, micro_batch: 2, optimizer: {{lr: 1e-3}}}}
gate: {gate}
evaluate: {{benchmarks: []}}
paths: {{data: data, weights: out/weights, stores: out/stores, results: out/results}}
hardware: cpu
"""
GATE = "{keep_ratio: 0.5, warmup_steps: 1, cycle_steps: 2, dense_steps: 1}"


@pytest.fixture
def harness(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    monkeypatch.chdir(tmp_path)
    for number in range(4):
        clip(tmp_path / "data" / "media" / f"good{number}.mp4", 8)
    Image.new("RGB", (8, 8)).save(tmp_path / "data" / "media" / "p.png")
    return Command(capsys, monkeypatch)


def _write(folder: Path, records: list[dict[str, Any]], *, damaged: str = "refuse", gate: str = "null") -> None:
    (folder / "data" / "a.json").write_text(json.dumps(records))
    (folder / "case.yaml").write_text(RECIPE.format(damaged=damaged, gate=gate))


def _good(count: int = 4) -> list[dict[str, Any]]:
    talk = "What number is shown?"
    return [
        {
            "id": f"good{number}",
            "video": f"good{number}.mp4",
            "conversations": [
                {"from": "human", "value": f"<video>\n{talk}"},
                {"from": "gpt", "value": f"Clip number {number}."},
            ],
        }
        for number in range(count)
    ]


def _refused() -> list[dict[str, Any]]:
    """Two prompts that are too long, and two pictures in one record."""
    answer = {"from": "gpt", "value": "An answer."}
    long = [{"id": f"long{n}", "conversations": [{"from": "human", "value": "word " * 3000}, answer]} for n in (1, 2)]
    pictures = {"from": "human", "value": "<image> <image> Compare."}
    return [*long, {"id": "two", "image": ["p.png", "p.png"], "conversations": [pictures, answer]}]


def test_a_refusal_is_never_forgotten_and_all_are_named(harness: Command, tmp_path: Path) -> None:
    _write(tmp_path, _good() + _refused())
    assert harness("data", "check", "case.yaml") == 0
    assert "conversations are not checked: the model's files are not there" in harness.out
    for _ in range(2):
        assert harness("prepare", "case.yaml") == 4
        assert harness.err.count("3 of 7 records cannot be used") == 1
        for name in ("long1", "long2", "two"):
            assert f"a.json#{name}: " in harness.err
    assert harness("data", "check", "case.yaml") == 4
    assert "5 media files" in harness.out
    assert "3 damaged" in harness.out
    assert harness("train", "case.yaml") == 4
    _write(tmp_path, _good())
    assert harness("data", "check", "case.yaml") == 0
    assert harness("prepare", "case.yaml") == 0


def test_what_is_refused_is_left_out_where_the_recipe_says_so(harness: Command, tmp_path: Path) -> None:
    _write(tmp_path, _good() + _refused(), damaged="exclude")
    for _ in range(2):
        assert harness("prepare", "case.yaml") == 0
        assert "3 damaged samples are left out" in harness.err
    assert harness("train", "case.yaml") == 0
    assert harness("data", "show", "case.yaml", "a.json#two") == 4
    assert "is left out: 2 media and 2 media tags" in harness.err


def test_a_sample_is_shown_as_the_model_gets_it(harness: Command, tmp_path: Path) -> None:
    _write(tmp_path, _good(), gate=GATE)
    assert harness("data", "show", "case.yaml") == 3
    assert harness("prepare", "case.yaml") == 0
    assert harness("data", "show", "case.yaml", "a.json#good2") == 0
    assert "no reference losses" in harness.out
    assert harness("reference", "case.yaml") == 0
    assert harness("data", "show", "case.yaml", "a.json#good2") == 0
    lines = harness.out.splitlines()
    assert lines[0].startswith("sample a.json#good2 (id ")
    assert lines[0].endswith(": video good2.mp4")
    kinds = [line.split()[0] for line in lines[2:-3]]
    assert kinds == ["special", "visual", "special", "prompt", "special", "target"]
    assert "What number is shown?" in lines[5]
    target = next(line for line in lines if line.startswith("  target"))
    kept = next(line for line in lines if line.startswith("  kept"))
    assert "Clip number 2." in target
    assert 0 < int(kept.split()[1]) < int(target.split()[1])
    page, sheet = (tmp_path / line for line in lines[-2:])
    assert Image.open(sheet).size[0] > 4 * 16  # four pictures in a row
    html = page.read_text(encoding="utf-8")
    assert "data:image/png;base64," in html
    assert "<script" not in html
    assert html.count("<s ") >= 1
    assert harness("data", "show", "case.yaml", "good2") == 0
    assert harness.out.splitlines() == lines
    assert harness("data", "show", "case.yaml", "a.json#god2") == 4
    assert "did you mean a.json#good2?" in harness.err


def test_a_clip_in_an_allowed_folder_is_trained_on(harness: Command, tmp_path: Path) -> None:
    records = _good()
    for number in (0, 1):
        (tmp_path / "data" / "media" / f"good{number}.mp4").unlink()
        clip(tmp_path / "disk" / f"good{number}.mp4", 8)
    records[0]["video"] = str(tmp_path / "disk" / "good0.mp4")
    records[1]["video"] = "../../disk/good1.mp4"
    _write(tmp_path, records)
    assert harness("data", "check", "case.yaml") == 4
    assert "paths.media_roots.NAME=" in harness.out
    root = "paths.media_roots.disk=disk"
    assert harness("prepare", "case.yaml", root) == 0
    assert harness("data", "show", "case.yaml", "good0", root) == 0
    assert "video good0.mp4" in harness.out
    assert harness("train", "case.yaml", root) == 0
    ledger = next((tmp_path / "out" / "results").rglob("ledger.jsonl")).read_text()
    steps = [line for line in map(json.loads, ledger.splitlines()) if "valid" in str(line)]
    assert len(steps) == 2
    assert not any(step.get("failed") for step in steps), "every clip was read"
