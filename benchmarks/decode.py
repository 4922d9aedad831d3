"""CPU seconds to read the frames of a clip, alone or against another checkout of this project.

    python benchmarks/decode.py --against ../other-checkout > results/benchmarks/decode.json

The clips are made here: moving gradients and noise, H.264 with three B-frames between others (as encoders choose for
most videos), a key frame at most every 250 frames. The two checkouts take turns, each read in a process of its own,
so that a busy machine slows both alike. 16 frames are read of each clip, as in training; the time is that of the
process alone, and the smallest and the median of all turns is given.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import av
import numpy as np

CLIPS = {"360p_30s": (640, 360, 30, 900), "360p_120s": (640, 360, 30, 3600), "1080p_10s": (1920, 1080, 30, 300)}
"""Width, height, frames a second, frames."""
FRAMES = 16
READ = """
import hashlib, sys, time
from pathlib import Path
import harness
from harness.data.loading.video import decode
assert Path(harness.__file__).is_relative_to(sys.argv[3]), harness.__file__
path, frames = Path(sys.argv[1]), int(sys.argv[2])
decode(path, frames)
start = time.process_time()
pictures = decode(path, frames)
print(time.process_time() - start, hashlib.sha256(pictures.tobytes()).hexdigest())
"""


def make(path: Path, width: int, height: int, rate: int, frames: int) -> None:
    """A clip whose every part moves, with some noise that is the same in every run."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 24, (height, width, 3), dtype=np.uint8)
    y_H1, x_1W = np.mgrid[:height, :width]
    options = {"preset": "veryfast", "crf": "23", "x264-params": "b-adapt=0:bframes=3"}
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for i in range(frames):
            picture = np.stack([x_1W + 3 * i, y_H1 + 2 * i, x_1W + y_H1 - i], axis=-1) // 3 % 200
            picture = picture.astype(np.uint8) + np.roll(noise, 5 * i, axis=1)
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def read(checkout: Path, path: Path) -> tuple[float, str]:
    """CPU seconds, and the sha256 of the frames."""
    env = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", READ, str(path), str(FRAMES), str(checkout)]
    run = subprocess.run(command, env=env, cwd=checkout, check=True, capture_output=True, text=True)
    seconds, digest = run.stdout.split()
    return float(seconds), digest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="root of another checkout")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="keep the clips here, and use those that are there")
    parser.add_argument("--clips", nargs="+", choices=sorted(CLIPS), default=list(CLIPS))
    arguments = parser.parse_args()
    sides = {"this": Path(__file__).resolve().parents[1]}
    if arguments.against is not None:
        sides["other"] = arguments.against.resolve()
    clips = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.clips:
            path = (arguments.folder or Path(folder)).resolve() / f"{name}.mp4"
            if not path.exists():
                make(path, *CLIPS[name])
            seconds: dict[str, list[float]] = {side: [] for side in sides}
            digests: dict[str, str] = {}
            for _ in range(arguments.turns):
                for side, checkout in sides.items():
                    taken, digests[side] = read(checkout, path)
                    seconds[side].append(taken)
            clips[name] = {
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                "bytes": path.stat().st_size,
                "cpu_seconds": {
                    side: {"min": round(min(taken), 4), "median": round(statistics.median(taken), 4)}
                    for side, taken in seconds.items()
                },
                "same_frames": len(set(digests.values())) == 1,
            }
    where = {"cpu": _cpu(), "threads": os.cpu_count(), "python": platform.python_version(), "av": av.__version__}
    answer = {"schema": 1, "frames": FRAMES, "turns": arguments.turns, "where": where, "clips": clips}
    print(json.dumps(answer, indent=1))


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


if __name__ == "__main__":
    main()
