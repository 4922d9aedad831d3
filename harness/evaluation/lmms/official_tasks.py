"""lmms-eval's own tasks of the published benchmarks, on local data: their files, written for one evaluation.

A task file repeats the installed one and changes what has to differ: where the rows lie, the cap of an answer, in
Table 6's way of asking the words after the question. The functions are the task's own, from the file that the
installed task names; `judging` adds to what they say of an item. Only the child process imports this.
"""

from __future__ import annotations

import ast
import json
import os
from dataclasses import asdict
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, Literal

import lmms_eval
import yaml
from pydantic import TypeAdapter

from harness.benchmarks import PaperBenchmark
from harness.common.errors import EnvironmentProblem
from harness.evaluation.lmms.judging import judged, seen
from harness.evaluation.rows import BUILDERS, VIDEOS, choose, chosen, read_index, row_files, unit_columns

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_CACHE: Final = ".arrow"
"""Folder of what `datasets` makes of row files, below the folder of all benchmarks: made once, not once a run."""


class Function(str):
    """A function that a task file names, as `module.name`."""


def installed_task(benchmark: PaperBenchmark, task: str) -> tuple[dict[str, Any], Path]:
    """The settings of an installed task, its functions as names, and the folder of their module.

    Raises:
        EnvironmentProblem: the installed lmms-eval has no such file.
    """
    path = Path(lmms_eval.__file__).parent / "tasks" / benchmark.task_file.format(task=task)
    try:
        return _read(path), path.parent
    except FileNotFoundError as error:
        raise EnvironmentProblem(
            f"{benchmark.name}: the installed lmms-eval has no {error.filename}", hint="install lmms-eval 0.7.3"
        ) from None


class _Loader(yaml.SafeLoader):
    """YAML with functions as names."""


def _function(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> Function:
    return Function(loader.construct_scalar(node))


_Loader.add_constructor("!function", _function)


def _read(path: Path) -> dict[str, Any]:
    settings: dict[str, Any] = yaml.load(path.read_text(), _Loader)
    include = settings.pop("include", None)
    return {**(_read(path.parent / include) if include else {}), **settings}


class Offline(ast.NodeTransformer):
    """Drops what a task's module does at import that its functions do without: LongVideoBench's imports decord, a
    decoder for its interleaved form, and NExT-QA's asks a server for word lists of its open-ended form."""

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.ImportFrom | None:
        return None if node.module == "decord" else node

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        return None if ast.unparse(node).startswith("nltk.download(") else node


@cache
def _module(path: Path, home: str) -> ModuleType:
    """A task's module, executed once: several of its functions share what it has read. It looks at HF_HOME when it is
    executed, so that this is part of the key."""
    module = ModuleType(f"{path.parent.name}_{path.stem}_of_lmms_eval")
    module.__file__ = str(path)
    tree = ast.fix_missing_locations(Offline().visit(ast.parse(path.read_text())))
    exec(compile(tree, str(path), "exec"), module.__dict__)
    return module


def own_function(folder: Path, name: str) -> tuple[Callable[..., Any], ModuleType]:
    """A function of a task, and its module."""
    file, _, function = name.rpartition(".")
    module = _module(folder / f"{file}.py", os.environ["HF_HOME"])
    task_function: Callable[..., Any] = getattr(module, function)
    return task_function, module


# --- writing ---------------------------------------------------------------------------------------------


def write_official_tasks(
    benchmark: PaperBenchmark,
    root: Path,
    folder: Path,
    prompts: Literal["task", "paper"],
    limit: int | None,
    row: int | None = None,
) -> list[str]:
    """Write the task files of a benchmark and return the names of its tasks.

    The tasks show a document as lmms-eval's do: pictures that PIL has opened, or the path of a video. They look for
    videos below HF_HOME, where this links the folder in `root`.

    Args:
        root: the folder of all published benchmarks' data (`evaluation.files.benchmarks_root`).
        folder: gets the files; `TaskManager(include_path=folder, include_defaults=False)` finds them.
        limit: items of each part, as in `open_published`. lmms-eval's own `limit` must not be used.
        row: number of the one row that is asked, of a benchmark with one part; None asks all.

    Raises:
        EnvironmentProblem: the installed lmms-eval lacks a task.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _link_videos(benchmark, root)
    for task, part in zip(benchmark.lmms_tasks, benchmark.parts if benchmark.group else ("",), strict=True):
        settings, home = installed_task(benchmark, task)
        about = {"benchmark": asdict(benchmark), "part": part, "limit": limit, "row": row, "folder": str(home)}
        about["videos"] = str((root / benchmark.folder / VIDEOS).absolute())
        functions = f"{task}_functions"
        (folder / f"{functions}.json").write_text(json.dumps({**about, "settings": _names(settings)}))
        (folder / f"{functions}.py").write_text(_FUNCTIONS)
        changed = {**settings, **_changes(benchmark, root, part, settings, prompts)}
        if row is not None or (benchmark.aggregate == "complete" and limit is not None):
            # An aggregation may work on all items alone.
            changed["metric_list"] = [{"metric": benchmark.metric, "aggregation": "bypass", "higher_is_better": True}]
        (folder / f"{task}.yaml").write_text("".join(_line(functions, k, v) for k, v in changed.items()))
    return list(benchmark.lmms_tasks)


_FUNCTIONS: Final = '''"""The functions of the task file beside this."""

from pathlib import Path

from harness.evaluation.lmms.official_tasks import task_functions

globals().update(task_functions(Path(__file__).with_suffix(".json")))
'''


def _link_videos(benchmark: PaperBenchmark, root: Path) -> None:
    if benchmark.home is None:
        return
    link, target = Path(os.environ["HF_HOME"]) / benchmark.home, (root / benchmark.folder / VIDEOS).absolute()
    if link.is_symlink() and link.readlink() != target:
        link.unlink()
    if not link.is_symlink():
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(target)


def _changes(
    benchmark: PaperBenchmark,
    root: Path,
    part: str,
    settings: Mapping[str, Any],
    prompts: Literal["task", "paper"],
) -> dict[str, Any]:
    """What differs from the installed task."""
    files = row_files(benchmark, root, part)
    until = (settings.get("generation_kwargs") or {}).get("until", ["\n\n"])
    data: dict[str, Any] = {"data_files": {benchmark.split: [str(path.absolute()) for path in files]}}
    if os.access(root, os.W_OK):
        data["cache_dir"] = str((root / _CACHE).absolute())
    changed: dict[str, Any] = {
        "dataset_path": BUILDERS[files[0].suffix],
        "dataset_name": None,
        "dataset_kwargs": data,
        "generation_kwargs": {
            "max_new_tokens": benchmark.max_new_tokens,
            "do_sample": False,
            "temperature": 0,
            "until": until,
        },
        "model_specific_generation_kwargs": None,
        "process_docs": Function("process_docs"),
        "process_results": Function("process_results"),
        "doc_to_visual": Function("doc_to_visual"),
    }
    words = settings.get("lmms_eval_specific_kwargs")
    if words is not None:  # the default's alone: how a question is put must not depend on a model's name
        prompt_words = dict(words["default"])
        if prompts == "paper" and benchmark.paper is not None and benchmark.paper_differs:
            prompt_words["post_prompt"] = f"\n{benchmark.paper.prompt}" if benchmark.paper.prompt else ""
        changed["lmms_eval_specific_kwargs"] = {"default": prompt_words}
    return changed


def _line(functions: str, key: str, value: Any) -> str:
    """A setting as YAML. JSON is YAML; only functions need YAML's own syntax, at the top or in a list of metrics."""
    if isinstance(value, Function):
        return f"{key}: !function {functions}.{value.rpartition('.')[2]}\n"
    if key != "metric_list":
        return f"{key}: {json.dumps(value)}\n"
    lines = [f"{key}:\n"]
    for metric in value:
        for mark, (name, setting) in zip(["-", *" " * len(metric)], metric.items(), strict=False):
            lines.append(f"  {mark} {_line(functions, name, setting)}")
    return "".join(lines)


def _names(settings: Mapping[str, Any]) -> dict[str, str]:
    """The task's own functions: the name in its module by what they are for, or by their own name."""
    functions = {key: str(value) for key, value in settings.items() if isinstance(value, Function)}
    for metric in settings["metric_list"]:
        if isinstance(metric.get("aggregation"), Function):
            functions[metric["aggregation"].rpartition(".")[2]] = str(metric["aggregation"])
    return {**{name.rpartition(".")[2]: name for name in functions.values()}, **functions}


# --- what lmms-eval calls --------------------------------------------------------------------------------


def task_functions(path: Path) -> dict[str, Callable[..., Any]]:
    """The functions of a task by the names that its file uses: its own, and those that stand around them.

    Args:
        path: of what `write_official_tasks` noted beside the task file.
    """
    about = json.loads(path.read_text())
    benchmark = TypeAdapter(PaperBenchmark).validate_python(about["benchmark"])
    folder = Path(about["folder"])
    own = {name: own_function(folder, reference) for name, reference in about["settings"].items()}
    limit, row = about["limit"], about["row"]

    def process_docs(dataset: Any) -> Any:
        if row is not None:
            return dataset.select([row])
        columns = sorted(unit_columns(benchmark))
        if not columns and limit is None:
            return dataset
        rows = dataset.select_columns(columns) if columns else ({} for _ in range(len(dataset)))
        return dataset.select(chosen(choose(benchmark, rows, limit)))

    results, _ = own["process_results"]
    letters: dict[str, str] = {}
    if benchmark.correct == "first letter":
        index = read_index(Path(about["videos"]) / benchmark.index_files[-1])
        letters = {name: str(entry["GT"]) for name, entry in index.items()}
    return {
        **{name: function for name, (function, _) in own.items()},
        "process_docs": process_docs,
        "process_results": judged(benchmark, about["part"], results, letters),
        "doc_to_visual": seen(own["doc_to_visual"][0]),
    }
