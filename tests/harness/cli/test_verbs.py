"""The command line as a user meets it: answers on stdout, one message and the right code for every mistake."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness.config.load import load_recipe
from harness.data.sources import make_data
from tests.halting import Moment, halted
from tests.harness.worlds import run_builder

if TYPE_CHECKING:
    from tests.harness.cli.command import Command

ROOT = Path(__file__).parents[3]
SMALL = [
    "data.train_clips=4",
    "data.test_clips=8",
    "data.stage_clips=1",
    "train.global_batch=2",
    "train.micro_batch=2",
]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- reading verbs ---------------------------------------------------------------------------------------


def test_validate(harness: Command, folder: Path) -> None:
    assert harness("validate", "tiny_regate", "tiny_baseline") == 0
    assert [line.split(":")[0] for line in harness.out.splitlines()] == ["tiny_regate", "tiny_baseline"]
    (folder / "bad.yaml").write_text("name: X\nmodl: 3\n")
    assert harness("validate", "bad.yaml", "tiny_regate") == 2
    assert harness.out == ""
    assert "bad.yaml:1:7: name" in harness.err
    assert "bad.yaml:2:1: unknown key modl; did you mean model?" in harness.err
    answer = harness.json("validate", "bad.yaml", "tiny_regate", "nothing.yaml", code=2)
    assert answer["ok"] is False
    assert answer["recipes"][0]["problems"][0]["line"] == 1
    assert answer["recipes"][1]["run_id"].startswith("tiny_regate-")
    assert "no such file" in answer["recipes"][2]["problems"][0]["message"]


def test_plan(harness: Command, folder: Path) -> None:
    assert harness("plan", "tiny_regate", "videollama2_regate") == 0
    assert "1,000 steps of 16 samples" in harness.out
    assert "from Qwen/Qwen2-7B-Instruct" in harness.out
    plans = harness.json("plan", "tiny_regate", "gate.keep_ratio=0.25")["plans"]
    assert plans[0]["expected_reduction"] == pytest.approx(0.75 * 816 / 1000)
    assert not list(folder.iterdir()), "plan writes nothing"


def test_list(harness: Command, folder: Path) -> None:
    run_builder.build_pair(folder / "results")
    answer = harness.json("list")
    families = {"tiny", "tiny_videollama2", "videollama2", "tiny_videochat2", "videochat2", "tiny_hf", "hf"}
    assert {entry["name"] for entry in answer["models"]} == families
    assert {entry["name"] for entry in answer["sources"]} == {"shapes", "llava", "videochat2_it", "internvl"}
    assert "tiny_regate" in {entry["name"] for entry in answer["recipes"]}
    assert [entry["description"] for entry in answer["runs"]] == ["complete", "complete"]
    assert harness("list", "benchmarks") == 0
    assert harness.out.startswith("benchmarks\n  shapes ")
    mlvu = next(line for line in harness.out.splitlines() if line.strip().startswith("mlvu "))
    for words in ("mlvu_dev", "2,174", "mlvu_percetion_score", "sy1998/MLVU_dev", "143 GB", "CC BY-NC-SA 4.0"):
        assert words in mlvu
    listed = {entry["name"]: entry for entry in harness.json("list", "benchmarks")["benchmarks"]}
    assert len(listed) == 16
    assert (listed["mvbench"]["task"], listed["mvbench"]["items"], listed["mvbench"]["gigabytes"]) == (
        "mvbench",
        4000,
        17.0,
    )
    assert harness.json("list", "paths.results=elsewhere")["runs"] == []
    assert harness("list", "benchmark") == 2
    assert "did you mean benchmarks?" in harness.err


def test_show(harness: Command, folder: Path) -> None:
    run_builder.build_pair(folder / "results")
    assert harness("show", "tiny_regate", "gate.keep_ratio=0.25") == 0
    assert "  keep_ratio: 0.25\n" in harness.out
    assert "  weight_decay: 0.0\n" in harness.out, "defaults are shown"
    assert harness("show", "demo_regate") == 0
    assert "complete" in harness.out
    assert "% fewer (expected " in harness.out
    assert harness.json("show", "demo_regate")["record"]["name"] == "demo_regate"
    assert harness("show", "demo") == 2
    assert "beginning of several runs" in harness.err
    assert harness("show", "demo_nothing") == 2
    assert harness("show", "tiny_regate", "tiny_baseline") == 2


def test_status(harness: Command, folder: Path) -> None:
    recipe = run_builder.recipe(Path("results"), "half", gate=True, steps=40)
    run_dir = run_builder.build_run(recipe, killed_at=27)
    events = [json.loads(line) for line in (run_dir / "ledger.jsonl").read_text().splitlines()]
    assert harness("status") == 0
    assert "trained, step 40 of 40" in harness.out
    assert "shapes after step 20" in harness.out
    # As it was before it was resumed: 27 steps done, the last line torn by the kill.
    stop = next(index for index, event in enumerate(events) if event["attempt"] == 2)
    lines = [json.dumps(event) + "\n" for event in events[:stop]]
    (run_dir / "ledger.jsonl").write_text("".join(lines) + '{"schema":1,"ev')
    for path in (run_dir / "eval").rglob("*.json*"):
        path.unlink()
    (run,) = harness.json("status")["runs"]
    assert (run["state"], run["step"], run["attempts"], run["evaluations"]) == ("training", 27, 1, [])
    assert run["loss"] == [event["loss"] for event in events[:stop] if event["event"] == "step"][-1]
    assert run["done"] == ["prepare", "reference"]


def test_status_of_what_was_not_started_and_of_what_is_damaged(harness: Command, folder: Path) -> None:
    assert harness("status") == 0
    assert "no run yet" in harness.out
    assert harness("status", "tiny_regate") == 0
    assert "not started" in harness.out
    run_builder.build_pair(folder / "results")
    broken = next((folder / "results" / "runs").glob("demo_regate-*")) / "ledger.jsonl"
    broken.write_text("not json\n")
    assert harness("status") == 0
    assert "unreadable" in harness.out
    assert f"{broken.name}:1" in harness.out
    assert "complete" in harness.out, "the other run is still shown"


def test_tables(harness: Command, folder: Path) -> None:
    assert harness("tables") == 4
    assert "no finished run" in harness.err
    assert harness("tables", "--all") == 0
    assert "Table 4 of the paper (v1): efficiency" in harness.out
    run_builder.build_pair(folder / "results")
    assert harness("tables") == 0
    assert "demo_regate-" in harness.out
    assert "| demo_regate-" not in harness.out, "Markdown is for files"
    assert list((folder / "results" / "tables").glob("*.csv"))
    assert list((folder / "results" / "figures").glob("*.svg"))
    assert harness("tables", "tiny_regate", "paths.results=nowhere") == 4
    assert harness("tables", "--check") == 0
    assert "are what the records give" in harness.out
    assert str(Path("results/tables/pairs.md")) in harness.json("tables", "--check")["current"]
    (folder / "results" / "tables" / "pairs.csv").write_text("edited\n")
    assert harness("tables", "--check") == 5
    assert "pairs.csv differs" in harness.err
    names = {table["name"] for table in harness.json("tables", "--all")["tables"]}
    assert {"pairs", "paper/claims"} <= names
    assert harness("tables", "--all") == 0
    assert "\nClaims of the paper\n" in harness.out


def test_compare(harness: Command, folder: Path) -> None:
    run_builder.build_pair(folder / "results")
    assert harness("compare", "demo_baseline", "demo_regate") == 0
    assert "recipe.gate" in harness.out
    assert "McNemar" in harness.out
    names = [table["name"] for table in harness.json("compare", "demo_baseline", "demo_regate")["tables"]]
    assert names == ["runs", "settings", "benchmarks"]
    assert harness("compare", "demo_baseline") == 2
    assert harness("compare", "demo_baseline", "tiny_regate") == 4


def test_version_and_usage(harness: Command) -> None:
    assert harness("--version") == 0
    assert harness.out == "0.1.0\n"
    assert harness("rn") == 2
    assert "'run'" in harness.err
    for usage in (["run"], ["plan", "--jsn", "tiny_regate"], ["data", "mak"]):
        assert harness(*usage) == 2


# --- mistakes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "verb", ["run", "prepare", "reference", "train", "eval", "validate", "plan", "show", "status"]
)
def test_every_verb_checks_its_recipe(harness: Command, verb: str) -> None:
    assert harness(verb, "tiny_regate", "gate.keep_ration=0.5") == 2
    assert "did you mean keep_ratio?" in harness.err
    assert harness.out == ""


def test_a_recipe_that_is_not_there(harness: Command) -> None:
    assert harness("run", "recipes/tiny_regat.yaml") == 2
    assert "did you mean tiny_regate?" in harness.err
    assert harness("run", "gate.keep_ratio=0.25") == 2
    assert "no recipe given" in harness.err


@pytest.mark.parametrize("model", ["videollama2", "videochat2"])
def test_run_says_which_weights_and_data_are_missing(harness: Command, folder: Path, model: str) -> None:
    assert harness("run", "tiny_regate", f"{model}_regate") == 3
    assert "model.language_model" in harness.err
    assert "data.annotations" in harness.err
    assert "Hugging Face hub" in harness.err
    assert not list(folder.iterdir()), "the other recipe is not started"


def test_data_that_cannot_be_made(harness: Command) -> None:
    assert harness("data", "make", "videollama2_regate") == 4
    assert "come from" in harness.err


def test_a_damaged_clip_is_named_and_refused_or_excluded(harness: Command) -> None:
    recipe = load_recipe("tiny_smoke_regate", SMALL)
    root = make_data(recipe.data, recipe.paths, recipe.seed)
    assert harness("data", "check", "tiny_smoke_regate", *SMALL) == 0
    assert "13 media files" in harness.out
    clip = root / "clips" / "train" / "000001.mp4"
    clip.write_bytes(clip.read_bytes()[:200])
    assert harness("data", "check", "tiny_smoke_regate", *SMALL) == 4
    assert "000001.mp4" in harness.out
    assert "data.damaged=exclude" in harness.err
    assert harness("data", "check", "tiny_smoke_regate", *SMALL, "data.damaged=exclude") == 0
    assert "1 damaged" in harness.out


def test_a_folder_that_cannot_be_made(harness: Command, folder: Path) -> None:
    (folder / "file").write_text("")
    assert harness("data", "make", "tiny_smoke_regate", *SMALL, "paths.data=file/below") == 3
    assert "file" in harness.err


# --- stopping --------------------------------------------------------------------------------------------


def hears() -> None:
    """A shell starts its background jobs deaf to Ctrl-C, and their children inherit it; a terminal does not."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_command_ends_with_75_and_the_same_command_goes_on(
    harness: Command, folder: Path, number: signal.Signals
) -> None:
    arguments = ["data", "make", "tiny_regate", "data.train_clips=20"]
    moment = Moment("open", r"/clips/train/000007\.mp4$")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "preexec_fn": hears}
    with halted(moment, "-m", "harness", *arguments, cwd=folder, **pipes) as command:
        command.process.send_signal(number)
        out, err = command.process.communicate()
    process = command.process
    assert process.returncode == 75, err
    assert out == ""
    assert "the same command resumes" in err
    assert "Traceback" not in err
    recipe = load_recipe("tiny_regate", ["data.train_clips=20"])
    assert harness.json("plan", "tiny_regate", "data.train_clips=20")["plans"][0]["to_make"], "nothing half made"
    assert recipe.data.source == "shapes"


def test_a_closed_pipe_is_no_error_worth_a_traceback(folder: Path) -> None:
    pipe = subprocess.PIPE
    command = [sys.executable, "-m", "harness", "show", "tiny_regate"]
    with subprocess.Popen(command, cwd=folder, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert process.returncode == 1


def test_evaluations_are_listed_and_checked(harness: Command, folder: Path) -> None:
    listed = {entry["name"]: entry["description"] for entry in harness.json("list", "evaluations")["evaluations"]}
    assert "VideoChat2" in listed["evaluate/videochat2_official"]
    assert harness("validate", "evaluate/videochat2_official", "tiny_regate") == 0
    Path("odd.yaml").write_text(
        "kind: evaluation\nname: odd\nmodel: {adapter: lmms_eval, nme: x}\nbenchmarks: [pop]\n"
    )
    assert harness("validate", "odd.yaml", "tiny_regate") == 2
    answer = harness.json("validate", "odd.yaml", "evaluate/videochat2_official", code=2)
    odd, good = answer["recipes"]
    assert [problem["line"] for problem in odd["problems"]] == [3, 3, 4]
    assert (odd["run_id"], good["problems"]) == (None, [])
    assert good["run_id"].startswith("videochat2_official-")
