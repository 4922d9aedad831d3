"""The mirror: MLflow holds what the ledger and the record say, once, and a server that is down does no harm."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
from mlflow.tracking import MlflowClient

from harness.cli.sync import lines, require_sent, sync
from harness.common.errors import EnvironmentProblem, RecipeError
from harness.common.files import write_json
from harness.config.load import load_recipe
from harness.records import metrics
from harness.records import tracking as track
from harness.records.ledger import read_steps
from harness.records.metrics import total_rows
from harness.records.run_folder import shown_recipe
from harness.records.tracking import MirrorBeside, MirrorChild, is_mirrored, make_job, mirror, upload
from tests.halting import VARIABLE, Moment, environment, go_on
from tests.harness.worlds.run_builder import build_run, finish, recipe
from tests.waiting import HUNG_S, refused_port, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from harness.config.recipe import Recipe


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder whose MLflow store is made once; each test has runs of its own in it."""
    return tmp_path_factory.mktemp("store") / "results"


def _parts(job: track.Job, run_id: str) -> dict[str, Any]:
    client = MlflowClient(tracking_uri=job.uri)
    experiment = client.get_experiment_by_name(job.experiment)
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], f"tags.`regate.run_id` = '{run_id}'")
    parts = {run.data.tags["regate.part"]: run for run in found}
    assert len(parts) == len(found), "each part is there once"
    return parts


def _history(job: track.Job, run: Any, key: str) -> list[tuple[int, float]]:
    client = MlflowClient(tracking_uri=job.uri)
    return [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, key)]


def test_the_store_holds_what_the_ledger_and_the_record_say(store: Path) -> None:
    made = recipe(store, "whole", gate=True, description="A run to look at.")
    run_dir = build_run(made, killed_at=27)
    record = finish(made, run_dir)
    job = make_job(made, run_dir, final=True)
    report = upload(job)
    assert report.state == "done"
    parts = _parts(job, made.run_id)
    assert parts.keys() == {"recipe", "reference", "train", "eval"}
    parent = parts["recipe"]
    assert all(
        run.data.tags["mlflow.parentRunId"] == parent.info.run_id for part, run in parts.items() if part != "recipe"
    )
    assert {run.info.status for run in parts.values()} == {"FINISHED"}
    assert parent.info.run_name == "whole"
    assert parent.data.params["gate.keep_ratio"] == "0.5"
    assert parent.data.params["train.optimizer.lr"] == "0.002"
    assert not [key for key in parent.data.params if key.startswith(("paths", "track"))]
    assert parent.data.tags["regate.data"] == "d" * 16
    assert parent.data.tags["regate.weights"] == "w" * 16
    assert parent.data.metrics["total/tokens/scored"] == record["totals"]["counts"]["scored"]
    assert parent.data.metrics["total/device_hours/total"] == record["totals"]["device_hours"]["total"]
    assert parent.data.metrics["accuracy/shapes"] == record["evaluations"][-1]["mean"]["value"]
    assert sorted(parent.data.metrics)[:3] == ["accuracy/shapes", "computed/positions", "computed/targets"]
    sent = [row.key for row in total_rows(record)]
    assert sent[:3] == ["accuracy/shapes", "computed/targets", "computed/positions"], "the order of MLflow's pages"
    assert parent.data.metrics["computed/targets"] == record["totals"]["counts"]["scored"]
    for part, run in parts.items():
        assert run.info.run_name == ("whole" if part == "recipe" else f"whole/{part}")
        assert run.data.params == parent.data.params, "MLflow's comparison of parts says what differs"
    steps = read_steps(run_dir / "ledger.jsonl")
    train = parts["train"]
    assert _history(job, train, "loss") == [(step["step"], step["loss"]) for step in steps]
    assert _history(job, train, "tokens/scored") == [(s["step"], s["counts"]["scored"]) for s in steps]
    assert _history(job, train, "total/targets_computed")[-1] == (39, record["totals"]["counts"]["scored"])
    assert len(_history(job, train, "grad_norm")) == 39, "the step without one is left out"
    assert parts["reference"].data.metrics["seconds"] == 2.5
    evaluated = {entry["step"]: entry["mean"]["value"] for entry in record["evaluations"]}
    assert dict(_history(job, parts["eval"], "shapes/mean")) == evaluated
    assert len(_history(job, parts["eval"], "shapes/colour")) == 2
    client = MlflowClient(tracking_uri=job.uri)
    files = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert files == {"recipe.json", "record.json"}
    assert (store / "mlartifacts").is_dir()


def test_called_again_nothing_is_sent_twice(store: Path) -> None:
    made = recipe(store, "again", gate=True)
    run_dir = build_run(made)
    finish(made, run_dir)
    job = make_job(made, run_dir, final=True)
    first = upload(job)
    second = upload(job)
    assert first.metrics > 40 * 15
    assert (second.state, second.metrics) == ("done", 0)
    parts = _parts(job, made.run_id)
    assert len(_history(job, parts["train"], "loss")) == 40
    assert len(_history(job, parts["recipe"], "total/samples")) == 1
    assert len(_history(job, parts["eval"], "shapes/mean")) == 2


def test_a_run_mirrored_while_it_goes_killed_and_resumed_has_each_step_once(store: Path) -> None:
    made = recipe(store, "going")
    run_dir = build_run(made, killed_at=27)
    ledger = run_dir / "ledger.jsonl"
    whole = ledger.read_text()
    evaluations = run_dir / "eval"
    evaluations.rename(run_dir / "later")
    job = make_job(made, run_dir, final=False)
    second_start = whole.index('"event": "start"', whole.index('"event": "start"') + 1)
    ledger.write_text(whole[: whole.rindex("\n", 0, second_start) + 1] + '{"schema": 1, "event": "st')  # torn line
    assert upload(job).state == "done"
    parts = _parts(job, made.run_id)
    assert parts.keys() == {"recipe", "train"}
    assert parts["train"].info.status == "RUNNING"
    assert [step for step, _ in _history(job, parts["train"], "loss")] == list(range(27))
    ledger.write_text(whole)
    (run_dir / "later").rename(evaluations)
    finish(made, run_dir)
    assert upload(replace(job, final=True)).state == "done"
    train = _parts(job, made.run_id)["train"]
    assert [step for step, _ in _history(job, train, "loss")] == list(range(40))
    assert train.info.status == "FINISHED"


def test_out_of_time_it_stops_between_requests_and_the_next_call_goes_on(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recipe(store, "slow", steps=150)
    run_dir = build_run(made)
    finish(made, run_dir)
    job = make_job(made, run_dir, final=True)
    with monkeypatch.context() as patch:
        patch.setattr(track, "_BUDGET", {True: 0.0, False: 0.0})
        report = upload(job)
    assert report.state == "behind"
    assert "too slow" in str(report.message)
    parts = _parts(job, made.run_id)
    held = len(_history(job, parts["train"], "loss"))
    assert 0 < held < 150
    assert parts["recipe"].info.status == "RUNNING"
    assert upload(job).state == "done"
    parts = _parts(job, made.run_id)
    assert [step for step, _ in _history(job, parts["train"], "loss")] == list(range(150))
    assert parts["recipe"].info.status == "FINISHED"


def test_the_child_keeps_mlflow_and_its_variables_to_itself(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = recipe(store, "child")
    run_dir = build_run(made)
    finish(made, run_dir)
    # Either would send a run of MLflow's own interface into somebody else's run, or fail.
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    before = dict(os.environ)
    code = (
        "import sys, json\n"
        "from pathlib import Path\n"
        "from harness.config.recipe import Recipe\n"
        "from harness.records.tracking import mirror\n"
        "made = Recipe.model_validate_json(Path(sys.argv[1], 'recipe.json').read_text())\n"
        "report = mirror(made, Path(sys.argv[1]), final=True)\n"
        "print(report.state, report.metrics, report.message, [m for m in ('mlflow', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(run_dir)], capture_output=True, text=True, check=True)
    state, metrics_sent, message, loaded = done.stdout.split(maxsplit=3)
    assert (state, message, loaded.strip()) == ("done", "None", "[]")
    assert int(metrics_sent) > 600
    assert dict(os.environ) == before
    job = make_job(made, run_dir, final=True)
    assert len(_history(job, _parts(job, made.run_id)["train"], "loss")) == 40


def test_nothing_is_mirrored_when_the_recipe_says_so(tmp_path: Path) -> None:
    made = recipe(tmp_path, track={"mlflow": False})
    assert mirror(made, tmp_path, final=True).state == "off"
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long a child takes to import MLflow here, it is waited for."""
    monkeypatch.setattr(track, "_GRACE", HUNG_S)


@pytest.fixture
def held() -> Iterator[tuple[socket.socket, int]]:
    """A port that nobody listens on, and nobody else gets."""
    socket_, port = refused_port()
    with socket_:
        yield socket_, port


@pytest.fixture
def closed_port(held: tuple[socket.socket, int]) -> int:
    return held[1]


def _at(results: Path, port: int, **fields: Any) -> Recipe:
    return recipe(results, "served", track={"uri": f"http://user:secret@127.0.0.1:{port}"}, **fields)


def test_a_server_that_is_down_is_reported_once_and_costs_no_time(
    tmp_path: Path, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One attempt to connect, refused at once; no child imports MLflow for it, and nothing is waited for."""
    tried: list[Any] = []
    connect = socket.create_connection

    def create_connection(address: tuple[str, int], **settings: Any) -> socket.socket:
        tried.append(address)
        return connect(address, **settings)

    monkeypatch.setattr(socket, "create_connection", create_connection)
    monkeypatch.setattr(subprocess, "Popen", _nothing)
    monkeypatch.setattr(time, "sleep", _nothing)
    made = _at(tmp_path, closed_port)
    run_dir = build_run(made)
    finish(made, run_dir)
    first = mirror(made, run_dir, final=True)
    assert tried == [("127.0.0.1", closed_port)]
    assert first.state == "unreachable"
    assert first.message is not None
    assert str(closed_port) in first.message
    assert "secret" not in first.message + (run_dir / track.STATE_FILE).read_text()
    again = mirror(made, run_dir, final=True)
    assert (again.state, again.message) == ("unreachable", None)


def _nothing(*arguments: Any, **settings: Any) -> None:
    raise AssertionError(f"this takes time: {arguments}")


@pytest.mark.slow
def test_a_server_that_accepts_and_never_answers_is_left_behind(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        made = _at(tmp_path, silent.getsockname()[1])
        run_dir = build_run(made)
        finish(made, run_dir)
        report = mirror(made, run_dir, final=True)
    assert report.state == "failed", "its own limit of a request ended it, and not the patience of the caller"
    assert report.message is not None
    assert "record is on disk" in report.message
    assert "secret" not in report.message


def test_a_store_that_mlflow_refuses_is_a_message_and_no_error(tmp_path: Path) -> None:
    made = recipe(tmp_path, track={"uri": f"file:{tmp_path}/mlruns"})
    run_dir = build_run(made)
    finish(made, run_dir)
    report = mirror(made, run_dir, final=True)
    assert report.state == "failed"
    assert report.message is not None
    assert report.message.count("\n") == 0


@contextmanager
def serving(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A real tracking server whose rows lie in `folder`, from when it answers until it is ended with the block."""
    address = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    stores = ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", f"{folder}/files"]
    command = [sys.executable, "-m", "mlflow", "server", *address, *stores]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, **quiet, start_new_session=True)  # type: ignore[call-overload]

    def answers() -> bool:
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health") as answer:
            return bool(answer.status == 200)
        return False

    try:
        until(answers, process)
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.slow
def test_a_server_that_comes_later_and_is_killed_in_the_middle_has_each_row_once(
    tmp_path: Path, held: tuple[socket.socket, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is killed when it has kept some rows and the answer to them is on its way, which is lost with it."""
    held[0].close()
    made = recipe(tmp_path, "served", track={"uri": f"http://127.0.0.1:{held[1]}"})
    run_dir = build_run(made)
    finish(made, run_dir)
    assert mirror(made, run_dir, final=True).state == "unreachable"
    job = make_job(made, run_dir, final=True)
    with serving(tmp_path, held[1]) as server, monkeypatch.context() as patch:
        for name, value in track._environment().items():
            patch.setenv(name, value)
        log_batch = MlflowClient.log_batch

        def kept_and_killed(client: MlflowClient, *arguments: Any, **options: Any) -> None:
            log_batch(client, *arguments, **options)
            os.killpg(server.pid, signal.SIGKILL)
            raise ConnectionResetError("the server is gone")

        patch.setattr(MlflowClient, "log_batch", kept_and_killed)
        with pytest.raises(ConnectionResetError):
            upload(job)
    assert mirror(made, run_dir, final=True).state in ("unreachable", "failed")  # its port may outlive it a moment
    with serving(tmp_path, held[1]):
        report = mirror(made, run_dir, final=True)
        assert (report.state, report.message) == ("done", None)
        parts = _parts(job, made.run_id)
        assert [step for step, _ in _history(job, parts["train"], "loss")] == list(range(40))
        for run in parts.values():
            for key in run.data.metrics:
                steps = [step for step, _ in _history(job, run, key)]
                assert len(steps) == len(set(steps)), f"{run.info.run_name}: {key}"
        files = MlflowClient(tracking_uri=job.uri).list_artifacts(parts["recipe"].info.run_id)
        assert {file.path for file in files} == {"recipe.json", "record.json"}


@pytest.mark.slow
def test_while_the_run_goes_nothing_is_waited_for(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call comes back while its child has not even read the ledger."""
    made = recipe(store, "beside")
    run_dir = build_run(made)
    moment, reached = Moment("open", r"/ledger\.jsonl$"), tmp_path / "reached"
    with monkeypatch.context() as patch:
        for name in ("PYTHONPATH", VARIABLE):
            patch.setenv(name, environment(moment, reached)[name])
        assert mirror(made, run_dir, final=False).state == "started"
    until(reached.exists)
    assert not (store / "mlflow.db").exists() or not _parts(make_job(made, run_dir, final=False), made.run_id)
    go_on(reached)
    # The final mirror waits for the one that is under way, and both together send each step once.
    finish(made, run_dir)
    assert mirror(made, run_dir, final=True).state == "done"
    job = make_job(made, run_dir, final=True)
    assert len(_history(job, _parts(job, made.run_id)["train"], "loss")) == 40


def test_numbers_that_are_not_finite_and_odd_names_are_handled() -> None:
    found = metrics.rows({"a%b": 1, "inf": math.inf, "nan": math.nan, "none": None, "text": "x"}, 5, 2)
    assert found == [metrics.Row("a_b", 1.0, 5, 2)]
    assert metrics.milliseconds("2025-01-01T00:00:00.123+00:00") == 1735689600123
    assert metrics.parameters({"a": {"b": None, "c": [1, 2]}, "long": "x" * 300}) == {"a.b": "none", "a.c": "1, 2"}


def _unchecked(results: Path, uri: str) -> Recipe:
    """A recipe of before addresses were checked: its record is on disk, and a later command mirrors it."""
    made = recipe(results, "odd")
    return made.model_copy(update={"track": made.track.model_copy(update={"uri": uri})})


@pytest.mark.parametrize("uri", ["http://localhost:99999", "http://user:secret@host:notaport/", "http://u:secret@[::1"])
def test_an_address_that_cannot_be_used_is_a_mistake_of_the_recipe_and_never_ends_a_run(
    tmp_path: Path, uri: str
) -> None:
    with pytest.raises(RecipeError, match=r"track\.uri cannot be used"):
        load_recipe("tiny_smoke_regate", [f"track.uri={json.dumps(uri)}"])
    made = _unchecked(tmp_path, uri)
    run_dir = build_run(made)
    finish(made, run_dir)
    report = mirror(made, run_dir, final=True)
    assert report.state == "failed"
    assert report.message is not None
    assert "the record is on disk" in report.message
    assert "secret" not in f"{report.message} {report.uri}"


def test_a_damaged_state_of_the_mirror_is_written_anew(tmp_path: Path, closed_port: int) -> None:
    """It only holds what the user was told last."""
    made = _at(tmp_path, closed_port)
    run_dir = build_run(made)
    finish(made, run_dir)
    (run_dir / track.STATE_FILE).write_text("{")
    report = mirror(made, run_dir, final=True)
    assert (report.state, "secret" in str(report.message)) == ("unreachable", False)
    assert json.loads((run_dir / track.STATE_FILE).read_text())["state"] == "unreachable"


def test_a_deleted_experiment_is_named_with_the_ways_out(tmp_path: Path) -> None:
    made = recipe(tmp_path, "deleted")
    run_dir = build_run(made)
    finish(made, run_dir)
    job = make_job(made, run_dir, final=True)
    assert upload(job).state == "done"
    client = MlflowClient(tracking_uri=job.uri)
    experiment = client.get_experiment_by_name(job.experiment)
    assert experiment is not None
    client.delete_experiment(experiment.experiment_id)
    report = upload(job)
    assert report.state == "failed"
    assert "the experiment regate is deleted" in str(report.message)
    assert f"mlflow experiments restore -x {experiment.experiment_id}" in str(report.message)
    assert "track.experiment=NAME" in str(report.message)
    assert upload(replace(job, experiment="another")).state == "done", "the one way out"
    client.restore_experiment(experiment.experiment_id)
    assert upload(job).state == "done", "the other"


def test_a_stop_while_the_database_is_made_does_no_harm(tmp_path: Path) -> None:
    """The tables are there and their version is not: MLflow would refuse such a database for good."""
    made = recipe(tmp_path / "results", "born")
    run_dir = build_run(made)
    finish(made, run_dir)
    job, reached = make_job(made, run_dir, final=True), tmp_path / "reached"
    moment = Moment("call", "mlflow.store.db.utils:_get_alembic_config")
    child = subprocess.Popen(
        [sys.executable, "-m", "harness.records.tracking"],
        stdin=subprocess.PIPE,
        env={**environment(moment, reached), "MLFLOW_DISABLE_TELEMETRY": "true"},
    )
    assert child.stdin is not None
    with child.stdin as pipe:
        pipe.write(json.dumps(asdict(job)).encode())
    until(reached.exists, child)
    child.kill()
    child.wait()
    database = tmp_path / "results" / "mlflow.db"
    assert not database.exists()
    report = mirror(made, run_dir, final=True)
    assert (report.state, report.message) == ("done", None)
    assert _parts(job, made.run_id).keys() == {"recipe", "train", "eval"}
    assert sorted(path.name for path in database.parent.glob("*mlflow.db*")) == ["mlflow.db", "mlflow.db.lock"]


class Broken(BaseHTTPRequestHandler):
    """A server whose every answer is an error."""

    def _answer(self) -> None:
        self.send_response(500)
        self.end_headers()

    do_GET = do_POST = do_PUT = _answer

    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture
def broken() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Broken) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def test_a_server_that_answers_500_is_told_and_the_run_goes_on(tmp_path: Path, broken: int) -> None:
    """Beside the training: the child writes down what it came to, and the next mirror says it, once."""
    made = _at(tmp_path, broken)
    run_dir = build_run(made)
    said: list[str] = []
    clock = [0.0]
    child = MirrorChild()
    beside = MirrorBeside(made, run_dir, said.append, child, now=lambda: clock[0])
    beside()
    assert not (run_dir / track.STATE_FILE).exists(), "not at once"
    clock[0] = 61.0
    beside()
    assert said == []
    until(lambda: track._last_trouble(run_dir) is not None)
    for clock[0] in (122.0, 183.0):
        until(lambda: not child.busy)
        beside()
    assert len(said) == 1
    assert "WARNING: MLflow could not be written" in said[0]
    assert "the record is on disk" in said[0]
    assert "secret" not in said[0] + (run_dir / track.STATE_FILE).read_text()
    assert not is_mirrored(run_dir)
    until(lambda: not child.busy)
    child.close()


def test_one_child_mirrors_several_runs_and_another_takes_the_place_of_one_that_died(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[str]] = []
    start = subprocess.Popen

    def counted(*arguments: Any, **settings: Any) -> subprocess.Popen[str]:
        started.append(start(*arguments, **settings))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", counted)
    made = [recipe(store, name) for name in ("first", "second")]
    folders = [build_run(each) for each in made]
    with MirrorChild() as child:
        jobs = [make_job(each, folder, final=True) for each, folder in zip(made, folders, strict=True)]
        answers = [child.send(job) for job in jobs]
        assert child.busy
        started[0].kill()
        assert [answer.result(HUNG_S) for answer in answers] == [None, None], "nobody waits for a dead child"
        for each, folder in zip(made, folders, strict=True):
            finish(each, folder)
            assert mirror(each, folder, final=True, child=child).state == "done"
        assert len(started) == 2
        assert not child.busy
        assert started[1].poll() is None, "kept for the next one"
    assert started[1].wait(HUNG_S) == 0, "ends once it is not needed"
    for each, job in zip(made, jobs, strict=True):
        assert len(_history(job, _parts(job, each.run_id)["train"], "loss")) == 40


def test_sync_sends_what_a_server_missed_and_nothing_twice(
    tmp_path: Path, closed_port: int
) -> None:
    results = tmp_path / "results"
    down, kept = _at(results, closed_port), recipe(results, "kept")
    for made in (down, kept):
        run_dir = build_run(made)
        finish(made, run_dir)
        write_json(run_dir / "recipe.json", shown_recipe(made), sealed=True)
        assert "secret" not in (run_dir / "recipe.json").read_text()
    place = [f"paths.results={results}"]
    answer = {run["run_id"].rpartition("-")[0]: run for run in sync(place)}
    assert (answer["served"]["state"], answer["kept"]["state"]) == ("unreachable", "done")
    assert answer["kept"]["metrics"] > 0
    with pytest.raises(EnvironmentProblem, match="1 of 2 runs are not in MLflow"):
        require_sent(list(answer.values()))
    again = {run["run_id"].rpartition("-")[0]: run for run in sync(place)}
    assert (again["kept"]["state"], again["kept"]["metrics"]) == ("done", 0)
    assert "not sent: unreachable" in "\n".join(lines(list(again.values())))
