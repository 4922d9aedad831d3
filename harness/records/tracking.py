"""Mirror a run's record to MLflow, for looking at; the only module that knows mlflow.

The ledger and the record are what happened; a tracking server holds a copy. `mirror` sends what the store does not
hold yet and can be called at any time and again: a server that was down gets everything with the next call.

The work is done in a child process (`python -m harness.records.tracking`). MLflow is steered by environment
variables, reads some on import and others at every request: telemetry off, short time limits, and no MLFLOW_RUN_ID or
other variable that would send this run into another one. Those are set in the child alone, so nothing leaks into the
training process or into the processes that it starts, autologging has nothing to hook into, and a store that hangs
can be left behind by ending the child. One child does all mirrors of a command, one after the other: to import MLflow
takes longer than to send a run.

Runs are nested: NAME > NAME/reference, NAME/train, NAME/eval, each with the recipe's parameters. What the store holds
is asked from the store: the number of steps is a metric of the train run, committed in one transaction with the steps
themselves.
"""

from __future__ import annotations

import fcntl
import glob
import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections import deque
from concurrent.futures import Future
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import urlsplit

from harness.common.addresses import shown, without_secrets
from harness.common.errors import DataError
from harness.common.files import atomic_path, read_json, write_json
from harness.common.hashing import file_digest
from harness.common.imports import uncollected
from harness.records.ledger import read_events
from harness.records.metrics import (
    STEPS_DONE,
    Row,
    evaluation_rows,
    milliseconds,
    parameters,
    rows,
    step_rows,
    total_rows,
)
from harness.records.network import reachable
from harness.records.totals import split

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from harness.config.recipe import Recipe

State = Literal["off", "started", "done", "behind", "unreachable", "failed"]
"""behind: the time was over before everything was sent; the next call goes on."""

STATE_FILE: Final = "mirror.json"
_LOCK_FILE: Final = "mirror.lock"
_BATCH: Final = 1000
"""MLflow's limit of metrics in a request."""
_PARAMETERS: Final = 100
"""MLflow's limit of parameters in a request."""
_REQUEST_SECONDS: Final = 5
_BUDGET: Final = {True: 30.0, False: 300.0}
"""Seconds of sending: the caller waits for the final mirror, and for no other."""
_BESIDE_S: Final = 60.0
"""Seconds between two mirrors of a run that goes on."""
_GRACE: Final = 30.0
"""Seconds beyond it, for the import and the first making of a SQLite store on a slow disk, before the child is
ended."""
_LATER: Final = "the record is on disk, a later run sends it again"
_FOREIGN: Final = ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_TRACKING_URI")


@dataclass(frozen=True, slots=True)
class Job:
    """What a child is told. `artifacts` is where a new experiment in our own SQLite store keeps its files."""

    uri: str
    experiment: str
    artifacts: str | None
    run_dir: str
    final: bool


@dataclass(frozen=True, slots=True)
class MirrorReport:
    """What became of a mirror.

    Attributes:
        metrics: numbers that were sent by this call.
        message: for the user, in one line; None when there is nothing new to say. A server that is down is
            reported once, and not again until it was reached in between.
    """

    state: State
    uri: str
    metrics: int = 0
    seconds: float = 0.0
    message: str | None = None


def mirror(recipe: Recipe, run_dir: Path, *, final: bool, child: MirrorChild | None = None) -> MirrorReport:
    """Send what MLflow does not hold yet of a run; never raises: a mirror is a copy, and the record is on disk.

    Args:
        final: wait for it (until the store has everything, or about half a minute), and mark the runs as finished.
            Otherwise the child works beside the caller, on one core for some seconds, and nothing is waited for.
        child: does the work, and other mirrors after it; None is one for this mirror alone.
    """
    if not recipe.track.mlflow:
        return MirrorReport("off", "")
    uri = recipe.track.uri or ""
    try:
        with nullcontext(child) if child is not None else MirrorChild() as at_work:
            return _mirror(make_job(recipe, run_dir, final=final), run_dir, at_work)
    except Exception as error:  # noqa: BLE001 - whatever goes wrong here must not end a finished run
        reason = without_secrets(f"{type(error).__name__}: {error}", uri)[:300]
        return MirrorReport("failed", shown(uri), message=f"MLflow could not be written: {reason}; {_LATER}")


class MirrorBeside:
    """The mirror of a run that goes on: asked after each step, it gives the child a job now and then and waits for
    nothing. What the child could not send is said with the next job, each trouble once.

    Args:
        say: tells the user.
        child: does the work; the caller closes it.
        now: seconds of a monotonic clock.
    """

    def __init__(
        self,
        recipe: Recipe,
        run_dir: Path,
        say: Callable[[str], None],
        child: MirrorChild,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._recipe, self._run_dir, self._say, self._child, self._now = recipe, run_dir, say, child, now
        self._last = now()
        self._told: str | None = None

    def __call__(self) -> None:
        if not self._recipe.track.mlflow or self._now() - self._last < _BESIDE_S or self._child.busy:
            return
        self._last = self._now()
        started = mirror(self._recipe, self._run_dir, final=False, child=self._child)
        trouble = started.message or _last_trouble(self._run_dir)
        if trouble is not None and trouble != self._told:
            self._say(f"WARNING: {trouble}")
        self._told = trouble


def _mirror(job: Job, run_dir: Path, child: MirrorChild) -> MirrorReport:
    began = time.monotonic()
    if not job.final:
        child.send(job)  # which looks whether the store answers: nothing is waited for here
        return MirrorReport("started", shown(job.uri))
    before = _last_state(run_dir)
    report = child.result(job) if reachable(job.uri) else _unreachable(job)
    _write_state(run_dir, report, final=True)
    known = report.state == before and report.state in ("unreachable", "failed")
    message = f"{report.message}; {_LATER}" if report.message else None
    return MirrorReport(
        report.state, report.uri, report.metrics, time.monotonic() - began, None if known else message
    )


def _unreachable(job: Job) -> MirrorReport:
    return MirrorReport("unreachable", shown(job.uri), message=f"MLflow at {shown(job.uri)} does not answer")


def make_job(recipe: Recipe, run_dir: Path, *, final: bool) -> Job:
    """Where this run is mirrored to: recipe.track.uri, or mlflow.db and mlartifacts in the results folder."""
    results = Path(recipe.paths.results).absolute()
    if recipe.track.uri is not None:
        return Job(recipe.track.uri, recipe.track.experiment, None, str(run_dir.absolute()), final)
    artifacts = (results / "mlartifacts").as_uri()
    return Job(
        f"sqlite:///{results / 'mlflow.db'}", recipe.track.experiment, artifacts, str(run_dir.absolute()), final
    )


# --- parent: the child and its end -----------------------------------------------------------------------


@dataclass(slots=True)
class _Running:
    """A child and those who wait for its answers, in the order of their jobs."""

    process: subprocess.Popen[str]
    waiting: deque[Future[str | None]] = field(default_factory=deque)
    ended: bool = False


class MirrorChild:
    """A process that mirrors runs one after the other; it imports MLflow once.

    The first job starts it, and a job after its end starts another. It ends when it has done what it was given, once
    this object is closed or this process is gone: neither a key pressed in the terminal nor the end of the command
    stops what it is sending. Threads may give it jobs together.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: _Running | None = None

    def __enter__(self) -> MirrorChild:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def busy(self) -> bool:
        """Whether it has something to do."""
        with self._lock:
            return self._running is not None and bool(self._running.waiting)

    def send(self, job: Job) -> Future[str | None]:
        """Hand over a job; nothing is waited for.

        Returns:
            The child's answer, a line of JSON; None of a child that ended without one.
        """
        answer: Future[str | None] = Future()
        with self._lock:
            if self._running is None or self._running.ended:
                self._running = self._start()
            self._running.waiting.append(answer)
            pipe = self._running.process.stdin
            assert pipe is not None
            with suppress(BrokenPipeError):  # it has just ended, and whoever reads its answers says so
                pipe.write(json.dumps(asdict(job)) + "\n")
                pipe.flush()
        return answer

    def result(self, job: Job) -> MirrorReport:
        """What became of a job. A child that takes longer than a final mirror may is ended."""
        answer = self.send(job)
        try:
            line = answer.result(_BUDGET[True] + _GRACE)
        except TimeoutError:
            with self._lock:
                if self._running is not None:
                    self._running.process.kill()
            return MirrorReport("behind", shown(job.uri), message=f"MLflow at {shown(job.uri)} is too slow")
        if line is None:
            return MirrorReport("failed", shown(job.uri), message="MLflow could not be written: its process ended")
        return MirrorReport(**json.loads(line))

    def close(self) -> None:
        """It ends by itself when it has done what it was given; nothing is waited for."""
        with self._lock:
            if self._running is not None and self._running.process.stdin is not None:
                with suppress(BrokenPipeError):
                    self._running.process.stdin.close()
            self._running = None

    def _start(self) -> _Running:
        process = subprocess.Popen(
            [sys.executable, "-m", "harness.records.tracking"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_environment(),
            text=True,
            start_new_session=True,
        )
        running = _Running(process)
        threading.Thread(target=self._read, args=(running,), daemon=True, name="mirror").start()
        return running

    def _read(self, running: _Running) -> None:
        assert running.process.stdout is not None
        with running.process.stdout as lines:
            for line in lines:
                with self._lock:
                    answer = running.waiting.popleft()
                answer.set_result(line)
        running.process.wait()  # so that no dead child is left over
        with self._lock:
            running.ended = True
            left = tuple(running.waiting)
            running.waiting.clear()
        for answer in left:
            answer.set_result(None)


def _environment() -> dict[str, str]:
    """The child's environment. Names and passwords for a server are kept, whatever names a run is not."""
    kept = {name: value for name, value in os.environ.items() if name not in _FOREIGN}
    return {
        **kept,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(_REQUEST_SECONDS),
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
        "MLFLOW_LOGGING_LEVEL": "ERROR",
        "GIT_PYTHON_REFRESH": "quiet",
    }


def _last_state(run_dir: Path) -> str | None:
    path = run_dir / STATE_FILE
    try:
        return read_json(path, "the state of a mirror").get("state") if path.exists() else None
    except DataError:
        return None  # it only says what the user was told last; it is written anew


def _last_trouble(run_dir: Path) -> str | None:
    """What the child before could not do, in words."""
    path = run_dir / STATE_FILE
    try:
        content = read_json(path, "the state of a mirror") if path.exists() else {}
    except DataError:
        return None
    return f"{content['message']}; {_LATER}" if content.get("message") else None


def is_mirrored(run_dir: Path) -> bool:
    """Whether a run's store has all of its record, as far as the last mirror knew."""
    record = run_dir / "record.json"
    try:
        content = read_json(run_dir / STATE_FILE, "the state of a mirror")
    except DataError:
        return False
    whole = content.get("state") == "done" and content.get("record") is not None and record.exists()
    return bool(whole and content["record"] == file_digest(record))


def _write_state(run_dir: Path, report: MirrorReport, *, final: bool) -> None:
    record = run_dir / "record.json"
    sent = file_digest(record) if final and record.exists() else None
    content = {"schema": 1, "state": report.state, "message": report.message, "record": sent}
    write_json(run_dir / STATE_FILE, content, sealed=True)


# --- child: everything below runs with mlflow ------------------------------------------------------------


class DeletedExperiment(Exception):
    """The experiment was deleted in MLflow; its argument is the experiment's id."""


class Store:
    """One run's place in an MLflow store. `sent` counts the numbers sent.

    Raises:
        DeletedExperiment: MLflow holds the experiment as deleted, and makes no run in it.
    """

    def __init__(self, job: Job, deadline: float) -> None:
        with uncollected():
            from mlflow.tracking import MlflowClient

        self.deadline = deadline
        self.sent = 0
        with _locked(_store_lock(job.uri)):  # two first calls at once would both make the tables
            _make_database(job.uri)
            self.client = MlflowClient(tracking_uri=job.uri)
            self.experiment = self._experiment(job)

    def _experiment(self, job: Job) -> str:
        experiment = self.client.get_experiment_by_name(job.experiment)
        if experiment is not None:
            if experiment.lifecycle_stage == "deleted":
                raise DeletedExperiment(str(experiment.experiment_id))
            return str(experiment.experiment_id)
        # MLflow's page opens such an experiment on its training runs; without the tag, on (absent) GenAI traces.
        tags = {"mlflow.experimentKind": "custom_model_development"}
        return str(self.client.create_experiment(job.experiment, artifact_location=job.artifacts, tags=tags))

    def run(self, name: str, *, run_id: str, part: str, began: int, parent: str | None = None) -> Any:
        """The MLflow run of a part of our run, made when it is not there."""
        same_part = f"tags.`regate.run_id` = '{run_id}' and tags.`regate.part` = '{part}'"
        runs = self.client.search_runs([self.experiment], filter_string=same_part, max_results=1)
        if runs:
            return runs[0]
        tags = {"regate.run_id": run_id, "regate.part": part, "mlflow.source.name": "harness"}
        if parent is not None:
            tags["mlflow.parentRunId"] = parent
        return self.client.create_run(self.experiment, start_time=began, tags=tags, run_name=name)

    def describe(self, run: Any, known: dict[str, str]) -> None:
        """Parameters, as far as the run does not have them."""
        from mlflow.entities import Param

        new = [Param(key, value) for key, value in known.items() if key not in run.data.params]
        for start in range(0, len(new), _PARAMETERS):
            self.client.log_batch(run.info.run_id, params=new[start : start + _PARAMETERS])

    def log(self, run: Any, rows: Iterable[Row], tags: dict[str, str] | None = None) -> None:
        """Rows in one request, at most `_BATCH`; and tags, unless they are there."""
        from mlflow.entities import Metric, RunTag

        metrics = [Metric(row.key, row.value, row.milliseconds, row.step) for row in rows]
        new = [RunTag(key, value) for key, value in (tags or {}).items() if run.data.tags.get(key) != value]
        if metrics or new:
            self.client.log_batch(run.info.run_id, metrics=metrics, tags=new)
            self.sent += len(metrics)

    @property
    def late(self) -> bool:
        return time.monotonic() > self.deadline


def upload(job: Job) -> MirrorReport:
    """Send everything that the store does not hold yet. Runs in the child; needs mlflow.

    Raises:
        mlflow.exceptions.MlflowException: the store refuses, or the server does not answer in time.
    """
    run_dir = Path(job.run_dir)
    events = read_events(run_dir / "ledger.jsonl")
    if not events:
        return MirrorReport("done", shown(job.uri))
    ledger = split(events)
    asked = read_json(run_dir / "recipe.json", "a recipe")
    record = _record(run_dir)
    run_id, began = run_dir.name, milliseconds(events[0]["time"])
    try:
        store = Store(job, time.monotonic() + _BUDGET[job.final])
    except DeletedExperiment as error:
        ways = f"restore it (mlflow experiments restore -x {error}) or name another with track.experiment=NAME"
        message = f"the experiment {job.experiment} is deleted in MLflow at {shown(job.uri)}: {ways}"
        return MirrorReport("failed", shown(job.uri), message=message)
    parent = store.run(asked["name"], run_id=run_id, part="recipe", began=began)
    parent_id = parent.info.run_id
    _describe(store, parent, asked, record, run_dir)
    name, known = asked["name"], _parameters(asked)
    parts = []
    reference = [event for event in ledger.stages if event["stage"] == "reference"]
    if reference or (record and record["reference"]):
        parts.append(store.run(f"{name}/reference", run_id=run_id, part="reference", began=began, parent=parent_id))
        _reference(store, parts[-1], reference, record)
    complete = True
    if ledger.steps:
        parts.append(store.run(f"{name}/train", run_id=run_id, part="train", began=began, parent=parent_id))
        complete = _steps(store, parts[-1], ledger.steps)
    evaluations = sorted((run_dir / "eval").glob("step-*/*.json"))
    if evaluations:
        parts.append(store.run(f"{name}/eval", run_id=run_id, part="eval", began=began, parent=parent_id))
        _evaluations(store, parts[-1], evaluations, events)
    for part in parts:
        store.describe(part, known)
    if job.final and complete and record:
        for run in (*parts, parent):
            if run.info.status != "FINISHED":
                store.client.set_terminated(run.info.run_id, end_time=milliseconds(record["finished"]))
    if not complete:
        message = f"MLflow at {shown(job.uri)} was too slow to take everything"
        return MirrorReport("behind", shown(job.uri), store.sent, message=message)
    return MirrorReport("done", shown(job.uri), store.sent)


def _describe(store: Store, parent: Any, asked: dict[str, Any], record: dict[str, Any] | None, run_dir: Path) -> None:
    """Parameters, tags, totals and files of the recipe's run, as far as they are not there."""
    store.describe(parent, _parameters(asked))
    tags = {"mlflow.note.content": asked["description"]} if asked["description"] else {}
    totals: list[Row] = []
    if record is not None:
        where = record["provenance"]
        tags |= {f"regate.{key}": str(where[key]) for key in ("data", "weights", "reference") if where.get(key)}
        if where.get("git"):
            tags["regate.commit"] = where["git"]["commit"] + ("-dirty" if where["git"]["dirty"] else "")
        tags["regate.attempts"] = str(record["totals"]["attempts"])
        held = parent.data.metrics
        totals = [row for row in total_rows(record) if held.get(row.key) != row.value]
    for name in ("recipe.json", "record.json"):
        path = run_dir / name
        stamp = f"{path.stat().st_mtime_ns}" if path.exists() else None
        if stamp and parent.data.tags.get(f"regate.sent.{name}") != stamp:
            store.client.log_artifact(parent.info.run_id, str(path))
            tags[f"regate.sent.{name}"] = stamp
    store.log(parent, totals, tags)


def _parameters(asked: dict[str, Any]) -> dict[str, str]:
    """What a recipe asks for, flat: parameters of every part of a run, so that MLflow compares them."""
    left_out = ("paths", "track", "description", "hardware", "name")
    return parameters({key: value for key, value in asked.items() if key not in left_out})


def _reference(store: Store, run: Any, stages: list[dict[str, Any]], record: dict[str, Any] | None) -> None:
    if stages:
        seconds = sum(sum(stage["seconds"].values()) for stage in stages)
        values: dict[str, Any] = {"seconds": seconds}
        when = stages[-1]["time"]
    else:
        assert record is not None
        values, when = {}, record["finished"]
    if record and record["reference"]:
        cost = record["reference"]
        values |= {"targets": cost.get("targets")}
        if isinstance(cost.get("seconds"), int | float):
            # What the store cost, whichever run paid for it.
            values |= {"seconds": cost["seconds"], "device_hours": cost["seconds"] * cost.get("devices", 1) / 3600}
    held = run.data.metrics
    store.log(run, [row for row in rows(values, milliseconds(when), 0) if held.get(row.key) != row.value])


def _steps(store: Store, run: Any, steps: tuple[dict[str, Any], ...]) -> bool:
    """Send the steps that the store does not hold; whether it has them all now.

    A step that was sent before a kill and done again after it is the same step: it is not sent again.
    """
    first = int(run.data.metrics.get(STEPS_DONE, 0))
    batch: list[Row] = []
    for step, metric_rows in enumerate(step_rows(steps)):
        if step < first:
            continue
        if len(batch) + len(metric_rows) > _BATCH:
            store.log(run, batch)
            batch = []
            if store.late:
                return False
        batch += metric_rows
    store.log(run, batch)
    return True


def _evaluations(store: Store, run: Any, paths: list[Path], events: list[dict[str, Any]]) -> None:
    """Send the evaluations that the store does not hold, asking it for the steps that it does."""
    # The ledger's line is the time of an evaluation: a file's own time would not survive a copy.
    times = {event["step"]: event["time"] for event in events if event.get("stage") == "eval" and "step" in event}
    held: dict[str, set[int]] = {}
    for path in paths:
        evaluation = read_json(path, "an evaluation")
        key = f"{evaluation['benchmark']}/mean"
        if key not in held:
            history = store.client.get_metric_history(run.info.run_id, key) if key in run.data.metrics else []
            held[key] = {point.step for point in history}
        if evaluation["step"] not in held[key]:
            store.log(run, evaluation_rows(evaluation, times.get(evaluation["step"], events[-1]["time"])))


def _record(run_dir: Path) -> dict[str, Any] | None:
    path = run_dir / "record.json"
    return read_json(path, "a record") if path.exists() else None


def _make_database(uri: str) -> None:
    """Make MLflow's SQLite database where there is none, whole or not at all; the caller holds its lock.

    MLflow makes its tables one after the other and then refuses for good what a stop left of them. So they are made
    under another name, and a copy that SQLite has finished gets the name.
    """
    from mlflow.tracking import MlflowClient

    path = _database(uri)
    if path is None or path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in path.parent.glob(f"{glob.escape(path.name)}.making*"):
        leftover.unlink()
    making = path.with_name(f"{path.name}.making")
    MlflowClient(tracking_uri=f"sqlite:///{making}").search_experiments(max_results=1)
    with atomic_path(path) as whole, closing(sqlite3.connect(making)) as database:
        database.execute("VACUUM INTO ?", (str(whole),))
    making.unlink()


def _database(uri: str) -> Path | None:
    """The file of an SQLite store; None where it is none."""
    parts = urlsplit(uri)
    return Path(parts.path[1:]) if parts.scheme == "sqlite" and len(parts.path) > 1 else None


def _store_lock(uri: str) -> Path | None:
    database = _database(uri)
    return None if database is None else Path(f"{database}.lock")


@contextmanager
def _locked(path: Path | None, *, wait: bool = True) -> Iterator[bool]:
    """Hold the lock of a file, and say whether it is held; it goes with the process. No path, no lock."""
    if path is None:
        yield True
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def _sent(job: Job) -> MirrorReport:
    try:
        return upload(job) if job.final or reachable(job.uri) else _unreachable(job)
    except Exception as error:  # noqa: BLE001 - the parent tells it: a mirror is a copy, and the record is on disk
        reason = without_secrets(f"{type(error).__name__}: {error}".splitlines()[0], job.uri)[:300]
        return MirrorReport("failed", shown(job.uri), message=f"MLflow could not be written: {reason}")


def _do(job: Job) -> MirrorReport:
    run_dir = Path(job.run_dir)
    with _locked(run_dir / _LOCK_FILE, wait=job.final) as held:
        if not held:  # the child of another command is at it; the next call sends what it misses
            return MirrorReport("behind", shown(job.uri))
        report = _sent(job)
        if not job.final:  # nobody waits for it, so it writes down itself what it came to
            _write_state(run_dir, report, final=False)
        return report


def main() -> None:
    """The child: a job on each line of stdin, and its report as a line of stdout, where nothing else gets."""
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as answers:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        for line in sys.stdin:
            report = _do(Job(**json.loads(line)))
            with suppress(BrokenPipeError):  # the command is gone; what it asked for is done all the same
                answers.write(json.dumps(asdict(report)) + "\n")
                answers.flush()


if __name__ == "__main__":
    main()
