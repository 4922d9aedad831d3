"""What opening VideoChat2-IT costs: time, the memory that stays, and what each loading process adds to it.

    python benchmarks/open_data.py                                # 300,000 samples in 37 files; 300 MB on disk
    python benchmarks/open_data.py --samples 2600000 --out results/benchmarks/open_data.json

The annotations are generated; their media are empty files, which are looked for and not decoded. Prints one JSON
object. Memory is that of a fresh process: `peak` while it opens, `kept` when it is open; `worker` is what one forked
process has written to (and so holds alone) after it drew an epoch and read 20,000 samples.

`read` is the first command, which reads the annotations and packs them; `opened` is any later one. Its first batch is
the text of 32 samples out of a loading process, from the moment at which the data are opened. Times are those of the
clock, `cpu` that of the process; packages are imported before.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

from harness.config.data import Annotation, VideoChat2Data
from harness.config.recipe import Paths
from harness.data.loading.batches import windows
from harness.data.sampler import Sampler
from harness.data.sources import DataSet, open_data
from harness.models.tiny.processor import TinyProcessor, train_tokenizer

WORDS = ["the", "man", "walks", "over", "a", "red", "bridge", "and", "looks", "back", "at", "dogs", "twice", "before"]
READ = 20_000


def generate(folder: Path, samples: int, files: int) -> VideoChat2Data:
    """`samples` records in `files` annotation files, 1 to 4 pairs each, two records a medium."""
    draw = random.Random(0)
    annotations = []
    for number in range(files):
        count = samples // files + (number < samples % files)
        kind, suffix = ("image", "jpg") if number % 2 else ("video", "mp4")
        (folder / "media" / str(number)).mkdir(parents=True)
        records = []
        for i in range(count):
            name = f"{i // 2:09d}.{suffix}"
            (folder / "media" / str(number) / name).touch()
            pairs = [
                {"i": text(draw, 12), "q": text(draw, 10), "a": text(draw, 20)} for _ in range(draw.randint(1, 4))
            ]
            records.append({kind: name, "QA": pairs})
        (folder / f"{number}.json").write_text(json.dumps(records))
        annotations.append(Annotation(file=f"{number}.json", media=str(number)))
    return VideoChat2Data(source="videochat2_it", annotations=tuple(annotations), media="media")


def text(draw: random.Random, words: int) -> str:
    return " ".join(draw.choices(WORDS, k=words))


def memory(field: str) -> int:
    """Bytes of this process: Pss or Private_Dirty, from the kernel's own account."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def work(data: DataSet, sampler: Sampler, send: Any) -> None:
    """A loading process: it draws an epoch's order and reads samples of it."""
    before = memory("Private_Dirty")
    began = time.perf_counter()
    for step in range(READ // 32):
        for index in sampler.window(step)[0]:
            _ = data.samples[index]
    seconds = time.perf_counter() - began
    send.send({"bytes": memory("Private_Dirty") - before, "read_us": seconds / (READ // 32 * 32) * 1e6})


def cpu_seconds() -> float:
    """Of this process and of those that it started and that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def first_batch(data: DataSet, seconds: float, cpu: float) -> dict[str, float]:
    """Seconds until the first micro-batch is there, by the clock and of the processors; opening took those given."""
    tokenizer = train_tokenizer([" ".join(WORDS)])
    processor = TinyProcessor(tokenizer, frames=data.frames, size=data.blank, visual_tokens=4)
    began, before = time.perf_counter(), cpu_seconds()
    sampler = Sampler(len(data.samples), global_batch=32, micro_batch=32, seed=0, groups=data.modality)
    batches = windows(data, processor, sampler, start=0, stop=1, workers=1, with_media=False)
    assert len(next(batches)[0].sample_ids_B) == 32
    seconds += time.perf_counter() - began
    batches.close()
    cpu += cpu_seconds() - before
    return {"first_batch_seconds": round(seconds, 2), "first_batch_cpu_seconds": round(cpu, 2)}


def measure(folder: str, data: VideoChat2Data, send: Any) -> None:
    multiprocessing.set_start_method("fork", force=True)  # as in a command, which nobody has spawned
    before = memory("Pss")
    began, clock = time.process_time(), time.perf_counter()
    opened = open_data(data, Paths(data=folder), 0, decode=False)
    seconds, wall = time.process_time() - began, time.perf_counter() - clock
    kept = memory("Pss") - before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    sampler = Sampler(len(opened.samples), global_batch=32, micro_batch=32, seed=0, groups=opened.modality)
    mine, theirs = multiprocessing.get_context("fork").Pipe()
    worker = multiprocessing.get_context("fork").Process(target=work, args=(opened, sampler, theirs))
    worker.start()
    found = mine.recv()
    worker.join()
    count, packed = len(opened.samples), opened.samples.nbytes  # type: ignore[attr-defined]
    send.send(
        {
            "samples": count,
            "open_seconds": round(wall, 4),
            "open_cpu_seconds": round(seconds, 4),
            **first_batch(opened, wall, seconds),
            "kept_bytes": kept,
            "worker_bytes": found["bytes"],
            "packed_bytes_a_sample": round(packed / count, 1),
            "kept_beside_packed_bytes_a_sample": round((kept - packed) / count, 1),
            "peak_bytes_a_sample": round(peak / count, 1),
            "worker_bytes_a_sample": round(found["bytes"] / count, 1),
            "read_microseconds": round(found["read_us"], 1),
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=300_000)
    parser.add_argument("--files", type=int, default=37)
    parser.add_argument("--out", type=Path, help="write the JSON there, too")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = generate(Path(folder), given.samples, given.files)
        answer: dict[str, Any] = {"files": given.files, "cores": os.cpu_count()}
        for name in ("read", "opened"):
            mine, theirs = multiprocessing.get_context("spawn").Pipe()
            process = multiprocessing.get_context("spawn").Process(target=measure, args=(folder, data, theirs))
            process.start()
            answer[name] = mine.recv()
            process.join()
    text = json.dumps(answer, indent=1) + "\n"
    print(text, end="")
    if given.out is not None:
        given.out.write_text(text)


if __name__ == "__main__":
    main()
