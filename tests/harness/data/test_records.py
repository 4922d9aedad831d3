"""The record boundary: what is read, what is refused by name, and that nothing else gets through."""

from __future__ import annotations

import copy
import json
import random
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from harness.common.errors import DataError
from harness.config.data import Annotation, LlavaData, VideoChat2Data
from harness.config.recipe import Paths
from harness.data.formats import Bad, File, Row, read_llava, read_videochat2
from harness.data.records import check_value, read_records, short
from harness.data.sample import Turn
from harness.data.sources import check_data, open_data
from tests.harness.worlds.clips import clip

if TYPE_CHECKING:
    from pathlib import Path

    from harness.config.data import Data


def _talk(question: str = "<video>\nWhat?", answer: str = "This.") -> list[dict[str, Any]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def _record(**more: Any) -> dict[str, Any]:
    return {"id": "a", "video": "a.mp4", "conversations": _talk(), **more}


def _read(path: Path, content: Any, unread: Counter[str] | None = None) -> list[Row | Bad]:
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return read_llava(path, lambda video: f"{video}.mp4", unread)


def _why(path: Path, record: Any) -> str:
    (row,) = _read(path, record if isinstance(record, bytes) else [record])
    assert isinstance(row, Bad), row
    assert row.key.startswith("record 0")
    assert len(row.key) < 120
    return row.reason


def test_json_lines_a_byte_order_mark_and_lists_are_one(tmp_path: Path) -> None:
    records = [_record(id=str(i)) for i in range(3)]
    lines = "\n".join(map(json.dumps, records)).encode()
    plain = _read(tmp_path / "a.json", records)
    assert all(isinstance(row, Row) for row in plain)
    assert plain == _read(tmp_path / "a.jsonl", lines) == _read(tmp_path / "b.json", lines + b"\n\n")
    assert plain == _read(tmp_path / "c.json", b"\xef\xbb\xbf" + json.dumps(records, indent=1).encode())
    assert plain[:1] == _read(tmp_path / "d.jsonl", json.dumps(records[0]).encode())
    assert _read(tmp_path / "e.json", []) == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'[{"id": 1}, {"id" 2}]', r"a\.json:1:19: not JSON: Expecting ':'"),
        (b'[{"id": 1},\n]', r"a\.json:\d+:\d+: not JSON"),
        (b'[{"id": 1} {"id": 2}]', r"a\.json:1:12: not JSON: Expecting ','"),
        (b"[1] x", r"a\.json:1:5: not JSON: Extra data"),
        (b"[1", r"a\.json:1:3: not JSON"),
        (b"", r"a\.json:1:1: not JSON"),
        (b'{"id": 1}\n{"id": 2', r"a\.json:2:\d+: not JSON"),
        (b'{"id": 1}', "a list of records is expected, not dict"),
        (b'["\xff"]', r"a\.json:1: not UTF-8 at byte 2"),
        ('[{"id": 1}]'.encode("utf-16"), "a UTF-16 file: store it as UTF-8"),
        (b'"' + b"[" * 100_000, "not JSON"),
        (b'{"a":' + b"[" * 100_000, "nested too deep"),
    ],
)
def test_a_file_that_is_neither_is_refused_with_its_place(tmp_path: Path, content: bytes, words: str) -> None:
    with pytest.raises(DataError, match=words):
        _read(tmp_path / "a.json", content)


def test_what_cannot_be_stored_names_its_record(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    raw = json.dumps([_record(extra="@")])
    wrong = {
        '"\\ud83d"': "half a character, U+D83D",
        '"a\\u0000b"': 'a NUL character in "extra"',
        "NaN": "not finite",
        "-Infinity": "not finite",
        "1e999": "not finite",
        "9" * 30: "too many digits",
        "9" * 5000: "too many digits",
        "[" * 40 + "]" * 40: "nested more than 16 deep",
        "[" * 100_000 + "]" * 100_000: "nested too deep",
        '{"\\udc00": 1}': "half a character, U+DC00",
    }
    for value, words in wrong.items():
        assert words in _why(path, raw.replace('"@"', value).encode()), value[:20]
    good, bad, last = json.dumps(_record(id="x")), raw[1:-1].replace('"@"', "[" * 99_999 + "]" * 99_999), raw[1:-1]
    rows = _read(path, f"[{good}, {bad}, {last}]".encode())
    assert [type(row) for row in rows] == [Row, Bad, Row]  # the next record is found behind it


def test_names_in_messages_are_short_and_printable(tmp_path: Path) -> None:
    assert short("x" * 300) == "x" * 77 + "..."
    assert short("a\x1b[31m\nb") == "a\\x1b[31m\\x0ab"
    (row,) = _read(tmp_path / "a.json", [_record(id="i" * 500, conversations=[])])
    assert isinstance(row, Bad)
    assert len(row.key) < 100


def test_keys_that_change_what_is_trained_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    values = {"start": 0.2, "end": 1, "clip": [0, 1], "system": "Short.", "weight": 2, "audio": "a.wav"}
    for key, value in values.items():
        assert f'"{key}" is not honoured' in _why(path, _record(**{key: value})), key
        assert isinstance(_read(path, [_record(**{key: None})])[0], Row)
    masked = _record()
    masked["conversations"][1]["loss"] = False
    assert 'turn 1: "loss" is not honoured' in _why(path, masked)
    for place, loss in ((1, True), (1, 1.0), (0, False), (0, 0)):
        record = _record()
        record["conversations"][place]["loss"] = loss
        assert isinstance(_read(path, [record])[0], Row)
    for form in ({"query": "q", "response": "a"}, {"instruction": "i", "input": "", "output": "o"}):
        assert "form is not honoured: write conversations" in _why(path, form)


def test_other_keys_are_counted(tmp_path: Path) -> None:
    unread: Counter[str] = Counter()
    records = [_record(id=str(i), source="x") for i in range(3)] + [_record(id="s", spans=[[0, 5]], height=4)]
    records[0]["conversations"][0]["tokens"] = 3
    assert all(isinstance(row, Row) for row in _read(tmp_path / "a.json", records, unread))
    assert unread == {"source": 3, "spans": 1, "height": 1, "tokens": 1}


def test_a_system_turn_stands_first_or_is_refused(tmp_path: Path) -> None:
    path, system = tmp_path / "a.json", {"from": "system", "value": "Short."}
    (row,) = _read(path, [_record(conversations=[system, *_talk()])])
    assert isinstance(row, Row)
    assert row.turns[0] == Turn("system", "Short.")
    later = [*_talk(), system, *_talk("And?")]
    assert "a turn of the system stands behind a question" in _why(path, _record(conversations=later))


def test_ids_and_spans_of_others(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    rows = _read(path, [_record(id=None, spans=None), _record(id=7, spans="x"), _record(id=[1])])
    assert [getattr(row, "key", None) for row in rows[:2]] == ["a.mp4", "7"]
    assert isinstance(rows[2], Bad)
    (row,) = _read(path, [_record(spans=[[1, 0, 4, "colour"]])])
    assert isinstance(row, Row)
    assert row.spans == ((1, 0, 4, "colour"),)


def test_messages_of_openai_and_swift(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "<video>What?"}, {"role": "assistant", "content": "This."}]
    (row,) = _read(tmp_path / "a.json", [{"messages": messages, "videos": ["a.mp4"]}])
    assert isinstance(row, Row)
    assert (row.key, row.media) == ("a.mp4", (File("video", "a.mp4"),))
    assert row.turns == (Turn("user", "<media:0>What?"), Turn("assistant", "This."))
    parts = [{"type": "image", "image": "p.png"}, {"type": "text", "text": "What?"}]
    (row,) = _read(tmp_path / "a.json", [{"messages": [{"role": "user", "content": parts}, messages[1]]}])
    assert isinstance(row, Row)
    assert row.turns[0].text == "<media:0>\nWhat?"
    far = [{"type": "image_url", "image_url": {"url": "https://example.org/p.png"}}]
    assert "neither text nor a file" in _why(tmp_path / "a.json", {"messages": [{"role": "user", "content": far}]})
    text = [{"role": "user", "content": "Hi"}, messages[1]]
    both = _read(tmp_path / "a.json", [{"messages": text}, {"messages": [*text, *text]}])
    assert len({row.key for row in both}) == 2


def test_keys_that_change_a_row_are_refused_in_every_spelling_and_place(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for key in ("start_sec", "End", "start_frame", "clip", "video_end", "sample_weight", "loss_mask", "trainable"):
        assert f'"{key}" is not honoured' in _why(path, _record(**{key: 2})), key
    for key, harmless, harmful in (("ignore", False, True), ("skip", 0, 1), ("trainable", True, False)):
        record = _record()
        record["conversations"][1][key] = harmless
        assert isinstance(_read(path, [record])[0], Row), key
        record["conversations"][1][key] = harmful
        assert f'turn 1: "{key}" is not honoured' in _why(path, record), key
    part = {"type": "video", "video": "a.mp4", "video_start": 1.0}
    talk = [{"role": "user", "content": [part]}, {"role": "assistant", "content": "This."}]
    assert 'turn 0: "video_start" is not honoured' in _why(path, {"messages": talk})


def test_records_in_two_forms_and_of_no_form_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    spoken = [{"role": "user", "content": "<video>?"}, {"role": "assistant", "content": "Other."}]
    assert '"messages" is not honoured: the record is in another form, too' in _why(path, _record(messages=spoken))
    twice = _record()
    twice["conversations"][0]["content"] = "<video>\nSomething else?"
    assert 'turn 0: "value" and "content" say different things' in _why(path, twice)
    assert "it has neither conversations nor messages" in _why(path, {"id": "a", "text": "x"})
    assert '"prompt" is not honoured: write conversations' in _why(path, {"prompt": "x"})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x1f\x8b\x08", "packed by gzip, not JSON"),
        (b"PAR1x", "a Parquet file, not JSON"),
        (b"version https://git-lfs.github.com/spec/v1", "the pointer of a file that git-lfs has not fetched"),
    ],
)
def test_other_files_are_recognised_by_name(tmp_path: Path, content: bytes, words: str) -> None:
    with pytest.raises(DataError, match=words):
        _read(tmp_path / "a.json", content)


def test_a_list_within_an_object_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        _read(tmp_path / "a.json", {"version": 1, "data": [_record()]})
    assert caught.value.hint == "write the list under data into a file of its own"


def test_values_too_deep_are_named_whatever_they_are_made_of(tmp_path: Path) -> None:
    nested: Any = 1
    for _ in range(20):
        nested = {"a": nested}
    assert 'nested more than 16 deep in "extra"' in _why(tmp_path / "a.json", _record(extra=nested))


@pytest.mark.parametrize("name", ["/data/a.mp4", "../a.mp4", "b/../../a.mp4", "~/a.mp4", "C:\\a.mp4"])
def test_paths_out_of_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    assert "is no path below the folder of media" in _why(tmp_path / "a.json", _record(video=name))
    (tmp_path / "b.json").write_text(json.dumps([{"video": name, "QA": [{"q": "", "a": "x"}]}]))
    (row,) = read_videochat2(tmp_path / "b.json")
    assert isinstance(row, Bad)


def test_the_fingerprint_does_not_depend_on_where_the_folder_lies(tmp_path: Path) -> None:
    found = set()
    for place in ("one", "two/deeper"):
        clip(tmp_path / place / "media" / "a.mp4", 5)
        (tmp_path / place / "a.json").write_text(json.dumps([_record()]))
        data = LlavaData(source="llava", annotations=("a.json",), media="media")
        found.add(open_data(data, Paths(data=str(tmp_path / place)), 0).fingerprint)
    assert len(found) == 1


JUNK: list[Any] = [
    None, True, 0, -1, 10**30, 1.5, float("nan"), float("inf"), "", "x", "\ud83d", "a\0b", "y" * 5000, [], {}, [[]],
    [None], {"a": 1}, "../x", "/x", "<video>", "<media:0>", "[/INST]", ["a.mp4", "a.mp4"], [{"from": "gpt"}],
    "\u202e", "1" * 5000,
]  # fmt: skip
KEYS = ["id", "video", "image", "conversations", "QA", "start", "end", "system", "spans", "loss", "messages", "q"]


def _paths(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [here, *(path for key, item in inner for path in _paths(item, (*here, key)))]


def _mutated(record: dict[str, Any], rng: random.Random) -> Any:
    """One or two values replaced, removed, doubled or added, anywhere in the record."""
    value: Any = copy.deepcopy(record)
    for _ in range(rng.randint(1, 2)):
        path = rng.choice(_paths(value))
        if not path:
            if isinstance(value, dict):
                value[rng.choice(KEYS)] = rng.choice(JUNK)
            continue
        parent = value
        for key in path[:-1]:
            parent = parent[key]
        action = rng.randrange(4)
        if action == 0:
            del parent[path[-1]]
        elif action == 1 and isinstance(parent, list):
            parent.append(copy.deepcopy(parent[path[-1]]))
        elif action == 2 and isinstance(parent[path[-1]], str):
            parent[path[-1]] = parent[path[-1]][: rng.randrange(4)] + rng.choice(["\udc00", "\0", "<image>", "é"])
        else:
            parent[path[-1]] = rng.choice(JUNK)
    return value if rng.random() > 0.02 else rng.choice(JUNK)


def _sources(folder: Path) -> list[tuple[Data, list[dict[str, Any]]]]:
    llava = [_record(), {"id": "p", "image": "p.png", "conversations": _talk("<image>What?")}]
    llava += [{"q": "What?", "a": "This.", "video_id": "a"}, {"id": "t", "conversations": _talk("Hi?")}]
    messages = [{"role": "user", "content": "<video>What?"}, {"role": "assistant", "content": "This."}]
    llava.append({"messages": messages, "videos": ["a.mp4"]})
    pairs = [{"i": "Look.", "q": "What?", "a": "This."}, {"q": "And?", "a": "That."}]
    videochat2 = [{"video": "a.mp4", "QA": pairs}, {"image": "p.png", "QA": pairs}]
    videochat2.append({"video": "a.mp4", "start": 0.1, "end": 0.4, "QA": pairs})
    return [
        (LlavaData(source="llava", annotations=("llava.json",), media="media", damaged="exclude"), llava),
        (
            VideoChat2Data(
                source="videochat2_it", annotations=(Annotation(file="qa.json"),), media="media", damaged="exclude"
            ),
            videochat2,
        ),
    ]


def test_five_hundred_mutated_rows_are_read_or_named(tmp_path: Path) -> None:
    """One check and one opening give the same verdict on each, and what is opened can be stored and shown."""
    clip(tmp_path / "media" / "a.mp4", 10)
    Image.new("RGB", (8, 8)).save(tmp_path / "media" / "p.png")
    rng, paths, total = random.Random(0), Paths(data=str(tmp_path)), 0
    for data, templates in _sources(tmp_path):
        rows = [_mutated(rng.choice(templates), rng) for _ in range(250)]
        name = "llava.json" if data.source == "llava" else "qa.json"
        (tmp_path / name).write_text(json.dumps([templates[0], *rows]))
        report = check_data(data, paths, 0)
        opened = open_data(data, paths, 0)
        files = {file for file, _ in report.damaged if "record" not in file and "#" not in file}
        refused = {key for key, _ in report.damaged} - files
        by_file = {key for key, why in opened.excluded if why.partition(": ")[0] in files}
        assert {key for key, _ in opened.excluded} == refused | by_file
        assert len(opened.samples) + len(opened.excluded) == len(rows) + 1
        assert all(why for _, why in report.damaged)
        for sample in opened.samples:
            check_value([sample.key, *(turn.text for turn in sample.turns)])
            assert all(media.path.is_relative_to(tmp_path / "media") for media in sample.media)
        total += len(rows)
    assert total == 500


@pytest.mark.parametrize("seed", range(20))
def test_damaged_annotation_files_never_raise_anything_else(tmp_path: Path, seed: int) -> None:
    rng, path = random.Random(seed), tmp_path / "a.json"
    raw = bytearray(json.dumps([_record(id=str(i)) for i in range(4)]).encode())
    for _ in range(rng.randint(1, 4)):
        raw[rng.randrange(len(raw))] = rng.randrange(256)
    path.write_bytes(raw[: rng.randrange(1, len(raw))] if seed % 2 else raw)
    try:
        rows = read_llava(path, lambda video: video)
    except DataError as error:
        message = str(error)
        assert message.startswith(str(path))
    else:
        assert len(rows) <= len(list(read_records(path)))
