"""What every data source promises, on small files made here."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any, get_args

import pytest
from PIL import Image

from harness.common.errors import DataError
from harness.config.data import Annotation, Data, InternVLData, LlavaData, ShapesData, Subset, VideoChat2Data
from harness.config.recipe import Paths
from harness.data.loading.video import read_frames
from harness.data.packed import MODALITIES
from harness.data.sample import SamplingPolicy, sample_id
from harness.data.sources import make_data, missing_data, open_data, source_of

if TYPE_CHECKING:
    from pathlib import Path

SHAPES = ShapesData(source="shapes", train_clips=6, test_clips=7, stage_clips=1)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made set; the other sources borrow its clips and conversations."""
    return make_data(SHAPES, Paths(data=str(tmp_path_factory.mktemp("clips"))), 0)


def _llava(clips: Path, folder: Path) -> Data:
    shutil.copytree(clips / "clips", folder / "media" / "clips")
    shutil.copy(clips / "train.json", folder / "one.json")
    text = [{"id": "t", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]}]
    (folder / "two.json").write_text(json.dumps(text))
    return LlavaData(source="llava", annotations=("one.json", "two.json"), media="media", frames=4)


def _video_chatgpt(clips: Path, folder: Path) -> Data:
    shutil.copytree(clips / "clips" / "train", folder / "media")
    pairs = [{"q": f"Q{i}?", "a": f"A{i}.", "video_id": f"{i % 6:06d}"} for i in range(9)]
    (folder / "raw.json").write_text(json.dumps(pairs))
    return LlavaData(source="llava", annotations=("raw.json",), media="media", frames=4)


def _videochat2(clips: Path, folder: Path) -> Data:
    shutil.copytree(clips / "clips" / "train", folder / "media")
    qa = [{"i": "Look.", "q": "What?", "a": "This."}, {"i": "Look.", "q": "And?", "a": "That."}]
    whole: list[dict[str, Any]] = [{"video": f"{i:06d}.mp4", "QA": qa} for i in range(6)]
    (folder / "qa.json").write_text(json.dumps([*whole, {"video": "000000.mp4", "start": 0.2, "end": 0.8, "QA": qa}]))
    return VideoChat2Data(source="videochat2_it", annotations=(Annotation(file="qa.json"),), media="media", frames=4)


def _videochat2_media(clips: Path, folder: Path) -> Data:
    """Videos, a gif, a folder of pictures, a part of it and images, in folders of their own, shown as in training."""
    media = folder / "media"
    shutil.copytree(clips / "clips" / "train", media / "clips")
    for name in ("gifs", "shots/one", "pictures"):
        (media / name).mkdir(parents=True)
    frames = [Image.new("RGB", (64, 64), (9 * i,) * 3) for i in range(12)]
    frames[0].save(media / "gifs" / "a.gif", save_all=True, append_images=frames[1:], duration=50)
    for number, frame in enumerate(frames, start=1):
        frame.save(media / "shots" / "one" / f"{number:05d}.jpg")
    for number in range(4):
        frames[number].save(media / "pictures" / f"{number}.png")
    qa = [{"i": f"Look {i}.", "q": f"What {i}?", "a": "abcdef"[i] + "."} for i in range(3)]
    records: dict[str, list[dict[str, Any]]] = {
        "clips": [{"video": f"{i:06d}.mp4", "QA": qa} for i in range(6)],
        "gifs": [{"video": "a.gif", "QA": qa[:1]}],
        "shots": [{"video": "one", "QA": qa}, {"video": "one", "start": 1, "end": 3, "QA": qa}],
        "pictures": [{"image": f"{i}.png", "QA": [{"i": "Tell.", "q": "", "a": f"Grey {i}."}]} for i in range(4)],
    }
    for name, told in records.items():
        (folder / f"{name}.json").write_text(json.dumps(told))
    return VideoChat2Data(
        source="videochat2_it",
        annotations=tuple(Annotation(file=f"{name}.json", media=name) for name in records),
        media="media",
        subset=Subset(size=12),
        frames=4,
        frame_sampling="random",
        shuffle_turns=True,
        augment="official",
    )


def _internvl(clips: Path, folder: Path) -> Data:
    """Videos, a part of one without its tag, a picture and text alone; one annotation is there twice."""
    shutil.copytree(clips / "clips" / "train", folder / "media" / "clips")
    Image.new("RGB", (64, 64), (9, 9, 9)).save(folder / "media" / "grey.png")

    def record(key: str, question: str, **media: Any) -> dict[str, Any]:
        spoken = [{"from": "human", "value": question}, {"from": "gpt", "value": f"Answer {key}."}]
        return {"id": key, **media, "conversations": spoken}

    annotations = {
        "videos": [record(f"v{i}", "<video>\nWhat?", video=f"{i:06d}.mp4") for i in range(6)],
        "others": [
            record("part", "What?", video="clips/000000.mp4", clip=[0.2, 0.8]),
            record("picture", "See <image> here?", image="grey.png"),
            record("text", "Hi"),
        ],
    }
    meta = {
        "videos": {"root": "clips", "annotation": "videos.jsonl", "repeat_time": 1},
        "others": {"root": "", "annotation": "others.jsonl", "repeat_time": 2, "data_augment": False},
    }
    for name, records in annotations.items():
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(own)}\n" for own in records))
    (folder / "meta.json").write_text(json.dumps(meta))
    return InternVLData(source="internvl", meta="meta.json", media="media", frames=4)


def _shapes(clips: Path, folder: Path) -> Data:
    shutil.copytree(clips, folder / clips.name)
    return SHAPES


SOURCES = {
    "internvl": _internvl,
    "shapes": _shapes,
    "llava": _llava,
    "video_chatgpt": _video_chatgpt,
    "videochat2_it": _videochat2,
    "videochat2_media": _videochat2_media,
}


@pytest.fixture(params=sorted(SOURCES))
def source(request: pytest.FixtureRequest, clips: Path, tmp_path: Path) -> tuple[Data, Paths]:
    return SOURCES[request.param](clips, tmp_path), Paths(data=str(tmp_path))


def test_every_source_of_the_recipe_is_here(clips: Path, tmp_path: Path) -> None:
    known = {get_args(model.model_fields["source"].annotation)[0] for model in get_args(get_args(Data)[0])}
    made = set()
    for name, build in SOURCES.items():
        (tmp_path / name).mkdir()
        made.add(build(clips, tmp_path / name).source)
    assert made == known


def test_samples_are_ordered_stable_and_readable(source: tuple[Data, Paths]) -> None:
    data, paths = source
    assert missing_data(data, paths, 0) == []
    found = open_data(data, paths, 0)
    ids = [sample.id for sample in found.samples]
    assert ids == sorted(set(ids))
    assert found.excluded == ()
    for sample in found.samples:
        assert sample.id == sample_id(data.source, sample.key)
        assert [t.role for t in sample.turns if t.role != "system"] == ["user", "assistant"] * (
            sum(t.role == "user" for t in sample.turns)
        )
        marks = [int(i) for turn in sample.turns for i in re.findall(r"<media:(\d+)>", turn.text)]
        assert marks == list(range(len(sample.media)))
        assert not any(re.search(r"<(video|image)>", t.text) for t in sample.turns if t.role == "user")
        for media in sample.media:
            count = found.frames if media.kind == "video" else 1
            assert read_frames(media, frames=found.frames).shape == (count, 3, 64, 64)
        for turn, first, end, _ in sample.spans:
            assert sample.turns[turn].role == "assistant"
            assert sample.turns[turn].text[first:end].isalpha()


def test_questions_have_one_right_option_and_media(source: tuple[Data, Paths]) -> None:
    data, paths = source
    found = open_data(data, paths, 0)
    assert len(found.questions) == (7 if data.source == "shapes" else 0)
    trained = {media.path for sample in found.samples for media in sample.media}
    for question in found.questions:
        assert 0 <= question.answer < len(question.options) == len(set(question.options))
        assert not {media.path for media in question.media} & trained
        assert all(media.path.is_file() for media in question.media)


def test_the_fingerprint_is_that_of_the_content(source: tuple[Data, Paths], tmp_path: Path) -> None:
    data, paths = source
    before = open_data(data, paths, 0)
    assert open_data(data, paths, 0).fingerprint == before.fingerprint
    elsewhere = tmp_path / "moved"
    shutil.copytree(paths.data, elsewhere, ignore=shutil.ignore_patterns("moved"))
    assert open_data(data, Paths(data=str(elsewhere)), 0).fingerprint == before.fingerprint
    if isinstance(data, ShapesData):
        make_data(data, paths, 1)
        assert open_data(data, paths, 1).fingerprint != before.fingerprint
        return
    first = "videos.jsonl" if isinstance(data, InternVLData) else data.annotations[0]
    file = elsewhere / (first if isinstance(first, str) else first.file)
    last = file.read_text().rindex(".")
    file.write_text(file.read_text()[:last] + "!" + file.read_text()[last + 1 :])  # one letter of one answer
    assert open_data(data, Paths(data=str(elsewhere)), 0).fingerprint != before.fingerprint


def test_samples_can_be_sliced_and_asked_from_behind(source: tuple[Data, Paths]) -> None:
    samples = open_data(*source, 0).samples
    assert samples[-1] == samples[len(samples) - 1] == samples[-2:][1]
    assert list(samples)[1:3] == list(samples[1:3])
    with pytest.raises(IndexError):
        samples[len(samples)]


def test_missing_files_are_named_with_their_origin(source: tuple[Data, Paths], tmp_path: Path) -> None:
    data, _ = source
    paths = Paths(data=str(tmp_path / "nowhere"))
    lines = missing_data(data, paths, 0)
    if isinstance(data, ShapesData):
        assert len(lines) == 1
        assert "harness data make" in lines[0]
    elif isinstance(data, InternVLData):
        assert len(lines) == 1  # the meta file names the others
        assert source_of(data, paths, 0).origin in lines[0]
    else:
        folders = {a.media for a in data.annotations} if isinstance(data, VideoChat2Data) else {data.media}
        assert len(lines) == len(data.annotations) + len(folders)
        assert all(source_of(data, paths, 0).origin in line and "nowhere" in line for line in lines)
    with pytest.raises(DataError, match="data are missing") as caught:
        open_data(data, paths, 0)
    assert caught.value.exit_code == 4
    assert all(line in str(caught.value) for line in lines)


def test_only_made_data_can_be_made(source: tuple[Data, Paths]) -> None:
    data, paths = source
    if isinstance(data, ShapesData):
        assert make_data(data, paths, 0).is_dir()
        return
    with pytest.raises(DataError, match="cannot be made here"):
        make_data(data, paths, 0)


def test_a_missing_medium_is_named(source: tuple[Data, Paths]) -> None:
    data, paths = source
    found = open_data(data, paths, 0)
    gone = next(media for sample in found.samples for media in sample.media)
    gone.path.unlink()
    with pytest.raises(DataError, match=rf"{gone.path.name}: not there"):
        open_data(data, paths, 0)
    rest = open_data(data.model_copy(update={"damaged": "exclude"}), paths, 0)
    assert len(rest.samples) + len(rest.excluded) == len(found.samples)
    assert rest.excluded
    assert all(gone not in sample.media for sample in rest.samples)


def test_the_medium_of_each_sample_is_known_where_steps_see_one(source: tuple[Data, Paths]) -> None:
    data, paths = source
    found = open_data(data, paths, 0)
    if not isinstance(data, VideoChat2Data):
        assert found.modality is None
        assert found.media_sizes == {"all": len(found.samples)}
        return
    kinds = [sample.media[0].kind for sample in found.samples]
    assert found.modality is not None
    assert [MODALITIES[number] for number in found.modality] == kinds
    assert found.media_sizes == dict(Counter(kinds))
    assert open_data(data.model_copy(update={"batches": "mixed"}), paths, 0).modality is None


def test_a_subset_is_part_of_the_fingerprint_and_of_the_words(source: tuple[Data, Paths]) -> None:
    data, paths = source
    if not isinstance(data, VideoChat2Data):
        return
    whole = open_data(data.model_copy(update={"subset": None}), paths, 0)
    some, other = (
        open_data(data.model_copy(update={"subset": Subset(size=5, seed=seed)}), paths, 0) for seed in (0, 1)
    )
    assert whole.subset is None
    assert some.subset == f"5 of {len(whole.samples)} samples, drawn by seed 0"
    assert len({whole.fingerprint, some.fingerprint, other.fingerprint}) == 3
    assert {s.key for s in some.samples} < {s.key for s in whole.samples}


def test_how_samples_are_shown_is_not_part_of_the_fingerprint(source: tuple[Data, Paths]) -> None:
    """The stores hold for every order of the turns, every choice of frames and every crop."""
    data, paths = source
    if not isinstance(data, VideoChat2Data):
        return
    plain = {"frame_sampling": "uniform", "shuffle_turns": False, "augment": "none"}
    other = {"frame_sampling": "random", "shuffle_turns": True, "augment": "official", "frames": 7}
    one, two = (open_data(data.model_copy(update=keys), paths, 0) for keys in (plain, other))
    assert one.fingerprint == two.fingerprint
    assert one.sampling == SamplingPolicy(rule="middle")
    assert two.sampling == SamplingPolicy(rule="random", shuffle_turns=True, augment=True)


def test_opening_needs_no_torch(clips: Path) -> None:
    code = (
        "import sys; from harness.data.sources import open_data;"
        "from harness.config.data import ShapesData; from harness.config.recipe import Paths;"
        "d = ShapesData(source='shapes', train_clips=6, test_clips=7, stage_clips=1);"
        "assert len(open_data(d, Paths(data=sys.argv[1]), 0).samples) == 18; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(clips.parent)], check=True)
