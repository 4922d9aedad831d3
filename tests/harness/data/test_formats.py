"""Annotation files: what is read out of them, and what is said of those that cannot be used."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import pytest

from harness.common.errors import DataError
from harness.data.formats import Bad, File, Row, read_llava, read_videochat2
from harness.data.sample import Turn

if TYPE_CHECKING:
    from pathlib import Path


def _read(tmp_path: Path, records: Any) -> list[Row | Bad]:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(records))
    return read_llava(path, lambda video: f"{video}.mkv")


def _talk(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def _one(tmp_path: Path, record: Any) -> Row:
    (row,) = _read(tmp_path, [record])
    assert isinstance(row, Row), row
    return row


def test_tags_become_media_and_turns_keep_their_order(tmp_path: Path) -> None:
    talk = _talk(
        "<image>\nWhat?", "A cat.", "And <image> there?", "A dog.", "<video> Then?", "They run, says <video>."
    )
    row = _one(tmp_path, {"id": 7, "image": ["a.jpg", "b.jpg"], "video": "c.mp4", "conversations": talk})
    assert row.key == "7"
    assert row.media == (File("image", "a.jpg"), File("image", "b.jpg"), File("video", "c.mp4"))
    assert [t.role for t in row.turns] == ["user", "assistant"] * 3
    assert [t.text for t in row.turns] == [
        "<media:0>\nWhat?",
        "A cat.",
        "And <media:1> there?",
        "A dog.",
        "<media:2> Then?",
        "They run, says <video>.",  # an answer's words are the answer's own
    ]


@pytest.mark.parametrize(("kind", "name"), [("video", "c.mp4"), ("image", "c.png")])
def test_media_without_a_tag_are_an_error(tmp_path: Path, kind: str, name: str) -> None:
    """The official reader of VideoLLaMA2 trains on the text alone then, and says nothing."""
    (row,) = _read(tmp_path, [{"id": "a", kind: name, "conversations": _talk("What?", "A cat.")}])
    assert isinstance(row, Bad)
    assert row.key == "record 0 (a)"
    assert row.reason == f"it has {name}, but no question says <{kind}> where it stands: put the tag there"


def test_a_question_without_an_answer_is_an_error(tmp_path: Path) -> None:
    (row,) = _read(tmp_path, [{"id": "a", "conversations": _talk("What?", "A cat.", "And?")}])
    assert isinstance(row, Bad)
    assert row.reason == "an odd number of turns, 3: the last question has no answer"


def test_a_leading_answer_is_left_out_and_spans_move_with_the_turns(tmp_path: Path) -> None:
    talk = [{"from": "gpt", "value": "Hello"}, *_talk("Colour?", "It is red.")]
    row = _one(tmp_path, {"id": "a", "conversations": talk, "spans": [[2, 6, 9, "colour"]]})
    assert row.turns == (Turn("user", "Colour?"), Turn("assistant", "It is red."))
    ((turn, first, end, name),) = row.spans
    assert (row.turns[turn].text[first:end], name) == ("red", "colour")


def test_a_system_turn_is_kept(tmp_path: Path) -> None:
    talk = [{"from": "system", "value": "Be short."}, *_talk("<image>?", "Yes.")]
    row = _one(tmp_path, {"id": "a", "image": "a.png", "conversations": talk})
    assert [turn.role for turn in row.turns] == ["system", "user", "assistant"]


def test_raw_video_chatgpt_pairs(tmp_path: Path) -> None:
    pairs = [{"q": "Q0", "a": "A0", "video_id": "v_x"}, {"q": "Q1", "a": "A1", "video_id": "v_x"}]
    even, odd = _read(tmp_path, pairs)
    assert isinstance(even, Row)
    assert isinstance(odd, Row)
    assert even.media == (File("video", "v_x.mkv"),)
    assert [even.turns[0].text, odd.turns[0].text] == ["Q0\n<media:0>", "<media:0>\nQ1"]
    assert even.key != odd.key


def test_videochat2_instructions_bounds_and_pairs(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    pairs = [{"i": "Watch.", "q": "What?", "a": "A cat."}, {"i": "unused", "q": "Where?", "a": "Here."}]
    caption = {"image": "b.jpg", "QA": [{"i": "Describe.", "q": "", "a": "A dog."}]}
    path.write_text(json.dumps([{"video": "v/a.mp4", "start": 1, "end": 2.5, "QA": pairs}, caption]))
    first, second = read_videochat2(path)
    assert isinstance(first, Row)
    assert isinstance(second, Row)
    assert first.media == (File("video", "v/a.mp4", 1, 2.5),)
    assert first.turns == (
        Turn("system", "Watch."),
        Turn("user", "<media:0>\nWhat?"),
        Turn("assistant", "A cat."),
        Turn("user", "Where?"),
        Turn("assistant", "Here."),
    )
    assert second.turns == (Turn("system", "Describe."), Turn("user", "<media:0>"), Turn("assistant", "A dog."))


def test_keys_do_not_depend_on_the_order_of_the_file(tmp_path: Path) -> None:
    records = [{"id": "same", "conversations": _talk(f"Q{i}", "A")} for i in range(5)]
    records.append({"id": "other", "conversations": _talk("Q", "A")})
    keys = {row.turns[0].text: row.key for row in _read(tmp_path, records) if isinstance(row, Row)}
    random.Random(0).shuffle(records)
    again = {row.turns[0].text: row.key for row in _read(tmp_path, records) if isinstance(row, Row)}
    assert keys == again
    assert len(set(keys.values())) == 6
    assert keys["Q"] == "other"


def test_a_record_that_recurs_is_refused(tmp_path: Path) -> None:
    record = {"id": "same", "conversations": _talk("Q", "A")}
    first, second = _read(tmp_path, [record, record])
    assert isinstance(first, Row)
    assert second == Bad("record 1 (same)", "repeats an earlier record word for word")


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ("text", "an object is expected"),
        ({"id": "a"}, '"q" must be a text'),
        ({"id": "a", "conversations": []}, "at least one turn"),
        ({"id": "a", "conversations": [{"from": "bot", "value": "x"}]}, '"from" must be one of'),
        ({"id": "a", "conversations": _talk("Q")}, "no answer"),
        ({"id": "a", "conversations": _talk("Q", "A") + _talk("Q", "A")[1:]}, "same speaker"),
        ({"id": "a", "conversations": [{"from": "human", "value": 3}]}, '"value" must be a text'),
        ({"id": "a", "image": 3, "conversations": _talk("Q", "A")}, '"image" must be a path'),
        ({"id": "a", "image": "a.jpg", "conversations": _talk("<video>", "A")}, "says <video> where a.jpg is image"),
        ({"id": "a", "image": "a.jpg", "conversations": _talk("<image><image>", "A")}, "more media than the 1"),
        ({"id": "a", "image": ["a", "b"], "conversations": _talk("<image>", "A")}, "names 1 of the record's 2"),
        ({"id": "a", "conversations": _talk("<media:0>", "A")}, "only the reader may write"),
        ({"conversations": _talk("Q", "A")}, "neither an id nor media"),
    ],
)
def test_what_is_wrong_with_a_record_is_told(tmp_path: Path, record: Any, reason: str) -> None:
    (row,) = _read(tmp_path, [record])
    assert isinstance(row, Bad)
    assert reason in row.reason
    assert row.key.startswith("record 0")


def test_broken_json_is_told_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[\n {"id": 1,\n  "x" 2}\n]')
    with pytest.raises(DataError, match=r"a\.json:3:7: not JSON"):
        read_videochat2(path)
    path.write_bytes(b'["\xff"]')
    with pytest.raises(DataError, match="not UTF-8 at byte 2"):
        read_videochat2(path)
    path.write_text("{}")
    with pytest.raises(DataError, match="a list of records"):
        read_videochat2(path)


def _chat2(tmp_path: Path, record: Any, folder: str = ".") -> Row | Bad:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([record]))
    (row,) = read_videochat2(path, folder)
    return row


PAIR = {"i": "Watch.", "q": "What?", "a": "A cat."}


def test_videochat2_pairs_with_several_instructions_keep_each(tmp_path: Path) -> None:
    pairs = [PAIR, {"q": "Where?", "a": "Here."}, {"i": "Look.", "q": "", "a": "It is there."}]
    row = _chat2(tmp_path, {"video": "a.mp4", "QA": pairs}, "some/folder")
    assert isinstance(row, Row)
    assert row.openings == ("Watch.", "", "Look.")
    assert row.pairs == 3
    assert row.turns[5] == Turn("user", "")
    assert (row.key, row.media[0].name) == ("a.mp4", "some/folder/a.mp4"), "a key does not depend on the folder"
    alike = _chat2(tmp_path, {"video": "a.mp4", "QA": [PAIR, PAIR]})
    assert isinstance(alike, Row)
    assert alike.openings == ()


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"video": "a.mp4"}, 'it has no "QA"'),
        ({"video": "a.mp4", "QA": PAIR}, "put it in brackets"),
        ({"video": "a.mp4", "QA": []}, "at least one pair"),
        ({"video": "a.mp4", "QA": ["x"]}, "pair 0 of QA must be an object"),
        ({"video": "a.mp4", "QA": [PAIR, {"q": "Q"}]}, 'pair 1: "a" must be a text'),
        ({"video": "a.mp4", "QA": [{"a": "A"}]}, 'pair 0: "q" must be a text'),
        ({"video": "a.mp4", "QA": [{**PAIR, "i": None}]}, 'pair 0: "i" must be a text'),
        ({"video": "a.mp4", "QA": [{**PAIR, "q": "an </Video> tag"}]}, '"q" holds </Video>, at which the prompt'),
        ({"image": "a.jpg", "QA": [PAIR, {**PAIR, "a": "</Image>"}]}, 'pair 1: "a" holds </Image>'),
        ({"image": "a.jpg", "QA": [{**PAIR, "i": "x [/INST] y"}]}, '"i" holds [/INST]'),
        ({"QA": [PAIR]}, '"video" or "image" must name its medium'),
        ({"video": "a.mp4", "image": "a.jpg", "QA": [PAIR]}, "and not both"),
        ({"video": "a.mp4", "start": 1.0, "QA": [PAIR]}, 'only one of "start" and "end"'),
        ({"video": "a.mp4", "start": 3, "end": 3, "QA": [PAIR]}, "bound no part of a video"),
        ({"video": "a.mp4", "start": -1, "end": 3, "QA": [PAIR]}, "bound no part of a video"),
        ({"video": "a.mp4", "start": "0:01", "end": 3, "QA": [PAIR]}, "must be a number of seconds"),
    ],
)
def test_what_is_wrong_with_a_videochat2_record_is_told(tmp_path: Path, record: Any, reason: str) -> None:
    row = _chat2(tmp_path, record)
    assert isinstance(row, Bad)
    assert reason in row.reason
    name = record.get("video", record.get("image"))
    assert row.key == (f"record 0 ({name})" if name else "record 0")
