"""How far runs are, from the files of their folders alone: no run has to be alive, and nothing is written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.analysis.runs import shown_scale
from harness.cli.arguments import recipes_of, results_folder, split
from harness.common.errors import DataError, HarnessError
from harness.common.files import has_file, read_json
from harness.records.ledger import finished_step, read_events, read_steps
from harness.report import table as render

if TYPE_CHECKING:
    from collections.abc import Sequence

Status = dict[str, Any]


def runs_status(arguments: Sequence[str]) -> list[Status]:
    """The status of each recipe's run, or of every run of the results folder where no recipe is named."""
    if split(arguments)[0]:
        return [run_status(Path(recipe.paths.results) / "runs" / recipe.run_id) for recipe in recipes_of(arguments)]
    return [run_status(folder) for folder in run_folders(results_folder(arguments))]


def run_folders(results: Path) -> list[Path]:
    """The folders of runs, in the order of their names; empty where there is none."""
    runs = results / "runs"
    return sorted(folder for folder in runs.iterdir() if folder.is_dir()) if runs.is_dir() else []


def run_status(folder: Path) -> Status:
    """One run. A damaged file gives the state `unreadable` and its message; the other runs are still shown."""
    status: Status = {
        "run_id": folder.name,
        "folder": str(folder),
        "state": "not started",
        "done": [],
        "step": 0,
        "steps": None,
        "loss": None,
        "attempts": 0,
        "last": None,
        "evaluations": [],
        "problem": None,
    }
    try:
        asked = _asked(folder / "recipe.json")
        status |= _progress(folder / "ledger.jsonl")
        status["evaluations"] = _evaluations(folder)
        status["done"] = _done(folder, status, asked)
        status["state"] = _state(folder, status)
    except HarnessError as error:
        status |= {"state": "unreadable", "problem": str(error)}
    return status


def _progress(ledger: Path) -> Status:
    events, steps = read_events(ledger), read_steps(ledger)
    starts = [event for event in events if event["event"] == "start"]
    finished = finished_step(ledger)
    return {
        "step": finished if finished is not None else (steps[-1]["step"] + 1 if steps else 0),
        "steps": finished or (starts[-1].get("steps") if starts else None),
        "loss": steps[-1].get("loss") if steps else None,
        "attempts": len(starts),
        "last": events[-1].get("time") if events else None,
    }


def _done(folder: Path, status: Status, asked: dict[str, Any] | None) -> list[str]:
    """The stages that are behind the run; `reference` only where its recipe has a gate."""
    started = status["attempts"] > 0
    expected = 0 if asked is None else len(asked["evaluate"]["benchmarks"]) * len(asked["evaluate"]["at"])
    ended = finished_step(folder / "ledger.jsonl") is not None
    stages = {
        "prepare": asked is not None,
        "reference": started and asked is not None and asked["gate"] is not None,
        "train": ended,
        "eval": ended and asked is not None and len(status["evaluations"]) >= expected,
        "record": has_file(folder / "record.json"),
    }
    return [name for name, done in stages.items() if done]


def _asked(path: Path) -> dict[str, Any] | None:
    """The recipe of a run, as far as it is looked at here."""
    shape = {"evaluate": {"benchmarks": list, "at": list}, "gate": dict | None}
    return read_json(path, "a recipe", shape=shape) if has_file(path) else None


def _json(path: Path) -> dict[str, Any] | None:
    return read_json(path, "a file of a run") if has_file(path) else None


def _evaluations(folder: Path) -> list[Status]:
    evaluations: list[Status] = []
    for path in sorted((folder / "eval").glob("step-*/*.json")):
        result = _json(path) or {}
        try:
            score = {name: result[name] for name in ("step", "fraction", "benchmark")}
            score["scoring"] = result.get("scoring", {})
            evaluations.append({**score, "mean": result["mean"]["value"]})
        except (KeyError, TypeError) as error:
            raise DataError(f"{path}: not an evaluation result ({error})") from error
    return evaluations


def _state(folder: Path, status: Status) -> str:
    if "record" in status["done"]:
        return "complete"
    if "train" in status["done"]:
        return "trained"
    if status["attempts"]:
        return "training"
    return "prepared" if "prepare" in status["done"] else "started" if folder.is_dir() else "not started"


def status_lines(runs: Sequence[Status]) -> list[str]:
    """The same for a person: one line a run, its evaluations below."""
    if not runs:
        return ["no run yet below the results folder; start one with `harness run`"]
    width = max(len(run["run_id"]) for run in runs)
    lines: list[str] = []
    for run in runs:
        lines.append(f"{run['run_id']:<{width}}  {', '.join(_facts(run))}")
        lines += [
            f"{'':<{width}}  {score['benchmark']} after step {score['step']}: {_score(score)}"
            for score in run["evaluations"]
        ]
    return lines


def _facts(run: Status) -> list[str]:
    facts = [run["state"]]
    if run["problem"]:
        return [f"{run['state']}: {run['problem']}"]
    if run["attempts"]:
        facts.append(f"step {run['step']} of {run['steps'] or '?'}")
    if run["loss"] is not None:
        facts.append(f"loss {run['loss']:.3f}")
    if run["attempts"] > 1:
        facts.append(f"{run['attempts']} attempts")
    if run["done"] and run["state"] != "complete":
        facts.append("done: " + " ".join(run["done"]))
    if run["last"] and run["state"] != "complete":
        facts.append(f"last sign {run['last'][:19]} UTC")
    return facts


def _score(score: Status) -> str:
    """As the tables write it."""
    if score["mean"] is None:
        return "no score"
    scale = shown_scale(score)
    text = render.accuracy(None, scale=scale, value=score["mean"]).text
    return text if scale == 1.0 else f"{text} %"
