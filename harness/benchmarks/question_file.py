"""Held-out questions of a user's own as a benchmark, from a JSON file that a recipe names. No torch.

The file is read and checked when a recipe names it; `docs/your_data.md` describes its format.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, get_args

from harness.benchmarks import BENCHMARKS, Benchmark
from harness.common.files import odd_kind

if TYPE_CHECKING:
    from collections.abc import Mapping

SCHEMA: Final = 1
SOURCE: Final = "question file"
"""`Benchmark.source` of such questions: they bring their own media and belong to no data source."""
_MOST_OPTIONS: Final = 10
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")
_PICTURES: Final = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
_TOP: Final = frozenset({"schema", "name", "form", "questions", "description"})
_KEYS: Final = frozenset({"key", "ability", "question", "media", "options", "answer"})
_MEDIA_KEYS: Final = frozenset({"file", "start", "end"})

OwnForm = Literal["options", "letter", "short"]
"""How the items of a file are answered: the likeliest of the options, the generated letter of one, or a generated
short answer that is compared with the accepted ones (`harness.evaluation.multiple_choice.parse_answer`)."""


class QuestionFileProblem(ValueError):
    """What is wrong with a question file: the file, the record, and what to do."""


@dataclass(frozen=True, slots=True)
class OwnQuestions:
    """What a question file holds, checked.

    Attributes:
        records: as `harness.evaluation.multiple_choice.question_of` reads them: key, ability, text, options (the
            accepted answers where the form is `short`), answer (the place of the right option) and media.
    """

    benchmark: Benchmark
    records: tuple[dict[str, Any], ...]

    def missing_media(self, file: str) -> list[str]:
        """Files that are not there, each with the first record that shows it."""
        first: dict[str, str] = {}
        for record in self.records:
            for media in record["media"]:
                if media["path"] not in first and not Path(media["path"]).exists():
                    first[media["path"]] = record["key"]
        return [f"{path}: shown by question {key} of {file}" for path, key in first.items()]


@dataclass(frozen=True, slots=True)
class QuestionFile:
    """A benchmark of the user's own, by its file, which is read when this is made.

    Attributes:
        file: relative paths start at the working directory.
        sha256: of its content; filled in where it is not given.
        questions: what it holds.

    Raises:
        QuestionFileProblem: it cannot be read, is another than `sha256` says, or a record is wrong.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "strict": True}

    file: str
    sha256: str | None = None
    questions: OwnQuestions = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        path = Path(self.file)
        odd = odd_kind(path)
        if odd is not None:
            raise QuestionFileProblem(f"file {self.file} is {odd}, not a file")
        try:
            content = path.read_bytes()
        except OSError as error:
            raise QuestionFileProblem(
                f"file {self.file} cannot be read: {error.strerror}; relative paths start at {Path.cwd()}"
            ) from None
        sha256 = hashlib.sha256(content).hexdigest()
        if self.sha256 not in (None, sha256):
            raise QuestionFileProblem(
                f"file {self.file} is not the one that this run was started with (sha256 {sha256[:12]}, wanted "
                f"{str(self.sha256)[:12]}); put that one back, or start a run with this one"
            )
        object.__setattr__(self, "sha256", sha256)
        object.__setattr__(self, "questions", _read(self.file, content))

    @property
    def name(self) -> str:
        """Of the benchmark, in results and tables."""
        return self.questions.benchmark.name

    def identity(self) -> dict[str, Any]:
        """What of it makes two runs the same: its content, not its folder; the file's name is for people."""
        return {"file": Path(self.file).name, "sha256": self.sha256}


def _read(file: str, content: bytes) -> OwnQuestions:
    try:
        document = json.loads(content, object_pairs_hook=_without_repeats)
    except ValueError as error:  # also a repeated key, and bytes that are no UTF-8
        raise QuestionFileProblem(f"file {file} is not JSON: {error}") from None
    where = f"file {file}"
    _check_keys(where, document, known=_TOP, needed={"schema", "name", "questions"})
    if document["schema"] != SCHEMA:
        raise QuestionFileProblem(f"{where}: schema is {document['schema']!r}, this version reads {SCHEMA}")
    name = document["name"]
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise QuestionFileProblem(f"{where}: name is {name!r}; letters, digits, _ and -, at most 40 of them")
    if name in BENCHMARKS:
        raise QuestionFileProblem(f"{where}: name {name} is that of a benchmark that comes with the harness")
    questions = document["questions"]
    if not isinstance(questions, list) or not questions:
        raise QuestionFileProblem(f"{where}: questions must be a list with at least one record")
    multiple_choice = isinstance(questions[0], dict) and "options" in questions[0]
    form = document.get("form", "options" if multiple_choice else "short")
    if form not in get_args(OwnForm):
        raise QuestionFileProblem(f"{where}: form is {form!r}, not one of {', '.join(get_args(OwnForm))}")
    records = tuple(_record(file, place, record, form) for place, record in enumerate(questions, start=1))
    first: dict[str, int] = {}
    for place, record in enumerate(records, start=1):
        if record["key"] in first:
            raise QuestionFileProblem(
                f"{where}: question {place} has key {record['key']!r}, which question {first[record['key']]} has too"
            )
        first[record["key"]] = place
    abilities = tuple(dict.fromkeys(record["ability"] for record in records))
    return OwnQuestions(Benchmark(name, SOURCE, abilities, form=form, empty="count"), records)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    repeated = [key for place, (key, _) in enumerate(pairs) if key in dict(pairs[:place])]
    if repeated:
        raise ValueError(f"key {repeated[0]!r} stands twice in {json.dumps(dict(pairs))[:80]}")
    return dict(pairs)


def _check_keys(where: str, value: Any, *, known: frozenset[str], needed: set[str]) -> None:
    if not isinstance(value, dict):
        raise QuestionFileProblem(f"{where} is {type(value).__name__}, an object is wanted")
    unknown = [key for key in value if key not in known]
    if unknown:
        raise QuestionFileProblem(f"{where}: unknown key {unknown[0]!r}; known are {', '.join(sorted(known))}")
    absent = sorted(needed - value.keys())
    if absent:
        raise QuestionFileProblem(f"{where}: {', '.join(absent)} is missing")


def _record(file: str, place: int, record: Any, form: OwnForm) -> dict[str, Any]:
    where = f"file {file}: question {place}"
    _check_keys(where, record, known=_KEYS, needed={"key", "question", "answer"})
    key, ability, text = str(record["key"]), record.get("ability", "all"), record["question"]
    where = f"{where} (key {key})"
    if not key.strip() or isinstance(record["key"], bool | list | dict | type(None)):
        raise QuestionFileProblem(f"{where}: key is {record['key']!r}, a text or a number is wanted")
    if not isinstance(ability, str) or not _NAME.fullmatch(ability):
        raise QuestionFileProblem(f"{where}: ability is {ability!r}; letters, digits, _ and -, at most 40 of them")
    if not isinstance(text, str) or not text.strip():
        raise QuestionFileProblem(f"{where}: question is {text!r}, a text is wanted")
    options, answer = _short(where, record) if form == "short" else _choice(where, record)
    media = record.get("media", [])
    listed = media if isinstance(media, list) else [media]
    return {
        "key": key,
        "ability": ability,
        "text": text,
        "options": options,
        "answer": answer,
        "media": [_media(where, entry, Path(file).parent) for entry in listed],
    }


def _choice(where: str, record: Mapping[str, Any]) -> tuple[list[str], int]:
    options, answer = record.get("options"), record["answer"]
    if not isinstance(options, list) or not all(isinstance(option, str) and option.strip() for option in options):
        raise QuestionFileProblem(
            f"{where}: options are {options!r}, a list of texts is wanted; a file holds questions with options or "
            "questions with short answers, not both"
        )
    if not 2 <= len(options) <= _MOST_OPTIONS or len(set(options)) < len(options):
        raise QuestionFileProblem(f"{where}: between 2 and {_MOST_OPTIONS} different options are needed")
    if answer not in options:
        raise QuestionFileProblem(f"{where}: answer {answer!r} is none of its options {options}")
    return list(options), options.index(answer)


def _short(where: str, record: Mapping[str, Any]) -> tuple[list[str], int]:
    if "options" in record:
        raise QuestionFileProblem(f"{where}: has options, but this file's answers are short ones; make two files")
    answer = record["answer"]
    accepted = answer if isinstance(answer, list) else [answer]
    if not accepted or not all(isinstance(text, str) and text.strip() for text in accepted):
        raise QuestionFileProblem(f"{where}: answer is {answer!r}, a text or a list of accepted texts is wanted")
    return list(accepted), 0


def _media(where: str, entry: Any, folder: Path) -> dict[str, Any]:
    described = {"file": entry} if isinstance(entry, str) else entry
    _check_keys(f"{where}: media {entry!r}", described, known=_MEDIA_KEYS, needed={"file"})
    name, start, end = (described.get(part) for part in ("file", "start", "end"))
    if not isinstance(name, str) or not name:
        raise QuestionFileProblem(f"{where}: media {entry!r}: file is {name!r}, a path is wanted")
    begins, ends = (_seconds(f"{where}: media {name}", value) for value in (start, end))
    if begins is not None and ends is not None and ends <= begins:
        raise QuestionFileProblem(f"{where}: media {name}: end {end} is not after start {start}")
    kind = "image" if Path(name).suffix.lower() in _PICTURES else "video"
    return {"kind": kind, "path": str(folder / name), "start": begins, "end": ends, "sha256": None}


def _seconds(where: str, value: Any) -> float | None:
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or value < 0:
        raise QuestionFileProblem(f"{where}: start and end are seconds from 0, not {value!r}")
    return float(value)
