"""The evaluation's child process: `python -m harness.evaluation.lmms.child JOB.json EVENTS_FD`.

It scores every checkpoint of the job file, one after the other, and writes the result of each as soon as it has it.
As one of several it answers its share of the items and writes no result.
Events go to the parent as JSON lines on the given file descriptor; what lmms-eval prints goes to stdout and stderr.
The parent, not the exit code, decides whether a result counts.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from harness.common.errors import HarnessError
from harness.common.exits import FAILED, explained
from harness.common.files import read_json, write_atomic, write_json
from harness.common.imports import uncollected
from harness.config.evaluation import EvaluationRecipe, LmmsEvalModel
from harness.config.recipe import Recipe
from harness.evaluation.task import task_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import torch

    from harness.data.sample import Media
    from harness.evaluation.frame_store import FrameStore
    from harness.models.adapter import Adapter, Evaluated

PREEMPTED = 75


class Events:
    """JSON lines to the parent. A parent that is gone is no error here: `watch_parent` ends the process."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._last = 0.0

    def send(self, event: str, **fields: Any) -> None:
        with suppress(BrokenPipeError):
            self._stream.write(json.dumps({"event": event, **fields}) + "\n")
            self._stream.flush()

    def say(self, message: str) -> None:
        """A word to the user."""
        self.send("say", message=message)

    def progress(self, result: int) -> Callable[[int], None]:
        """Tells how many items of a result are done, a few times a second."""

        def advance(done: int) -> None:
            now = time.monotonic()
            if now - self._last > 0.2:
                self._last = now
                self.send("progress", result=result, done=done)

        return advance


def run(job: Mapping[str, Any], events: Events, make_adapter: Callable[[Recipe], Adapter]) -> None:
    """Write every result of the job, or keep this process's share of the answers to all of them."""
    with uncollected():
        from harness.evaluation.lmms.answer_cache import AnswerCollector, Answers, ShareAnswered
        from harness.evaluation.lmms.run_task import run_task, write_task_files
        from harness.models.device import use_threads

    recipe = read_recipe(job["recipe"])
    use_threads(job["threads"])
    work = Path(job["work"])
    processes = job["share"][1]
    readers = max(1, (os.cpu_count() or 1) // processes)
    subject = make_subject(recipe, make_adapter, readers=readers, processes=processes, say=events.say)
    tasks = {entry["name"]: write_task_files(task_of(entry["task"]), work / "tasks") for entry in job["tasks"]}
    process, processes = job["share"]
    for index, wanted in enumerate(job["results"]):
        began = time.monotonic()
        path, written = Path(wanted["path"]), tasks[wanted["task"]]
        made_by = {**subject.made_by(), "checkpoint": wanted["identity"]["checkpoint"], "data": wanted["data"]}
        with Answers(path, process) as answers:
            collector = AnswerCollector(answers, made_by, events.progress(index), (process, processes))
            model = subject.model(Path(wanted["checkpoint"]), collector, written[0].benchmark)
            try:
                result, items = run_task(written, collector, model)
            except ShareAnswered:
                continue
        result |= {**subject.facts(), "seconds": time.monotonic() - began}
        write_result(path, wanted["identity"], result, items)
        events.send("done", result=index, done=len(items))


def read_job(path: Path) -> dict[str, Any]:
    """The job file of a child.

    Raises:
        DataError: it is damaged.
    """
    shape = {"recipe": dict, "share": list, "tasks": list, "results": list, "work": str}
    return read_json(path, "the job of an evaluation", shape=shape)


def read_recipe(plain: Mapping[str, Any]) -> Recipe | EvaluationRecipe:
    """The document of the job file."""
    kind = EvaluationRecipe if plain.get("kind") == "evaluation" else Recipe
    return kind.model_validate_json(json.dumps(plain))


def make_subject(
    recipe: Recipe | EvaluationRecipe,
    make_adapter: Callable[[Recipe], Adapter],
    *,
    readers: int = 1,
    processes: int = 1,
    say: Callable[[str], None] = print,
) -> Any:
    """What is evaluated: `Checkpoints`, or a `Builtin` model of lmms-eval's.

    Args:
        readers: threads that decode media, which they do outside of Python's lock.
        processes: that answer at the same time.
        say: is told of damage that is mended.
    """
    import torch

    from harness.evaluation.frame_store import open_frames
    from harness.evaluation.lmms.subjects import Builtin, Checkpoints
    from harness.models import evaluated_for
    from harness.models.device import evaluated_dtypes
    from harness.records.run_folder import frames_room

    def keep_frames(read: Callable[[Media], torch.Tensor], adapter: Evaluated) -> FrameStore | None:
        if not recipe.devices.frame_cache_gb:
            return None
        frames = recipe.data.frames if isinstance(recipe, Recipe) else recipe.frames
        return open_frames(
            read,
            adapter.processor(),
            count=frames,
            rule=adapter.frame_rule,
            folder=recipe.paths.frames,
            room=frames_room(recipe) // processes,
            say=say,
        )

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batch_size = recipe.evaluate.batch
    if isinstance(recipe, Recipe):
        weights, dtype = evaluated_dtypes(recipe.evaluate.dtype, recipe.train.precision, device)
        trained, count = make_adapter(recipe), recipe.data.frames
        return Checkpoints(trained, count, batch_size, device, dtype, readers, weights, keep_frames)
    if isinstance(recipe.model, LmmsEvalModel):
        return Builtin(recipe.model, batch_size)
    _, dtype = evaluated_dtypes("auto", recipe.precision, device)
    published, count = evaluated_for(recipe), recipe.frames
    return Checkpoints(published, count, batch_size, device, dtype, readers, keep_frames=keep_frames)


def write_result(
    path: Path, identity: Mapping[str, Any], result: Mapping[str, Any], items: Sequence[Mapping[str, Any]]
) -> None:
    """The items first, compressed so that those of every run can be kept, then the result that names them with the
    hash of their lines: a result on disk is complete."""
    text = "".join(json.dumps(item) + "\n" for item in items)
    items_path = path.with_name(f"{path.stem}.items.jsonl.gz")
    write_atomic(items_path, gzip.compress(text.encode(), mtime=0), durable=True)
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    document = {**identity, **result, "items": items_path.name, "items_sha256": sha256}
    write_json(path, document, durable=True, sealed=True)


def watch_parent() -> None:
    """End this process when the parent is gone: its end of stdin closes, however it died."""

    def watch() -> None:
        while os.read(0, 4096):
            pass
        os._exit(PREEMPTED)

    threading.Thread(target=watch, daemon=True, name="watch-parent").start()


def report(error: BaseException) -> dict[str, Any]:
    """What the parent needs to raise the error again. tenacity, which lmms-eval wraps its calls in, hides it."""
    last = getattr(error, "last_attempt", None)
    error = (last.exception() if last is not None else None) or error
    if isinstance(error, HarnessError):
        return {"message": str(error), "hint": error.hint, "exit_code": error.exit_code}
    if isinstance(error, Exception):
        message, code = explained(error)
        if code != FAILED:
            return {"message": message, "hint": None, "exit_code": code}
    hint = "lower evaluate.batch" if type(error).__name__ == "OutOfMemoryError" else None
    return {"message": f"{type(error).__name__}: {error}", "hint": hint, "exit_code": FAILED}


def project_adapter(recipe: Recipe) -> Adapter:
    """The recipe's own adapter."""
    from harness.models import adapter_for

    return adapter_for(recipe, None)


def main(argv: Sequence[str], make_adapter: Callable[[Recipe], Adapter] = project_adapter) -> int:
    watch_parent()
    with os.fdopen(int(argv[1]), "w") as stream:
        events = Events(stream)
        try:
            run(read_job(Path(argv[0])), events, make_adapter)
        except BaseException as error:
            events.send("error", **report(error))
            raise
        events.send("end")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
