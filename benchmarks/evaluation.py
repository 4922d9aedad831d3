"""What an evaluation costs beside a plain loop over `generate`: items a CPU second of the same answers.

    python benchmarks/evaluation.py                               # writes results/benchmarks/evaluation.{json,md}
    python benchmarks/evaluation.py --rounds 9 --hidden 256 --out /tmp/evaluation

A model of transformers at toy size is asked several questions on each clip of a data set that is rendered for it.
The plain loop reads a question's clip, makes its inputs with the same processor and calls the model's `generate`,
question by question. The harness's arms are `evaluation.lmms.scorer.Scorer`: media by a thread ahead of the model,
a clip decoded once for its questions, and its tower pass shared by those of one batch; in the last arm the frames lie
on the disk, as `devices.frame_cache_gb` keeps them. The arms alternate in one
process, in another order every round; time is CPU time of all threads, with one computing thread. Every arm has to
write the same texts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import GenerationConfig

from harness.common.progress import Progress
from harness.config.load import load_recipe
from harness.data.loading.video import read_frames
from harness.data.sample import Sample, Turn, sample_id
from harness.data.sources import make_data, open_data
from harness.evaluation.frame_store import open_frames
from harness.evaluation.lmms.generation import Limits
from harness.evaluation.lmms.scorer import FrameCache, Request, Scorer, chunked
from harness.models import adapter_for
from harness.records import provenance

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from harness.data.sample import Media

RESULTS = Path(__file__).resolve().parents[1] / "results" / "benchmarks"
QUESTIONS = ("What moves?", "Where does it go in the end, and which colour has it?", "How many are there?")


def world(folder: Path, options: argparse.Namespace) -> Any:
    """The adapter of a toy model, its clips and weights made below `folder`."""
    sizes = {"hidden": options.hidden, "layers": 4, "tower_hidden": options.hidden // 2, "tower_layers": 4}
    recipe = load_recipe(
        "tiny_internvl_baseline",
        [
            *(f"paths.{name}={folder / name}" for name in ("data", "weights", "stores", "results")),
            *(f"model.{name}={value}" for name, value in sizes.items()),
            *("data.train_clips=8", f"data.test_clips={options.clips}"),
            f"data.size={options.pixels}",
        ],
    )
    make_data(recipe.data, recipe.paths, recipe.seed)
    adapter = adapter_for(recipe, open_data(recipe.data, recipe.paths, recipe.seed))
    adapter.prepare(Progress(quiet=True))
    return adapter


def plain_loop(adapter: Any, model: Any, asked: Sequence[Request], most: int) -> list[str]:
    """transformers' `generate`, question by question."""
    processor = adapter.processor()
    settings = GenerationConfig(
        max_new_tokens=most,
        do_sample=False,
        eos_token_id=processor.end_id,
        pad_token_id=processor.end_id,
        suppress_tokens=list(processor.visual_ids),
    )
    texts = []
    for request in asked:
        frames = [read_frames(media, frames=processor.frames, rule=adapter.frame_rule) for media in request.media]
        turns = (Turn("user", request.prompt),)
        sample = Sample(sample_id("question", request.key), request.key, request.media, turns)
        inputs = processor.collate([processor.encode_prompt(sample, frames)]).model_inputs()
        with torch.inference_mode():
            ids_BS = model.generate(**inputs, generation_config=settings)
        written = ids_BS[0, inputs["input_ids"].shape[1] :].tolist()
        texts.append(processor.decode([token for token in written if token != processor.end_id]))
    return texts


def harness_answers(
    adapter: Any, model: Any, asked: Sequence[Request], batch: int, kept: Path | None = None
) -> list[str]:
    """The evaluation's way, from clips that nobody has decoded yet in this process.

    Args:
        kept: folder with the frames of an evaluation before it; None where none are kept.
    """
    count, rule = adapter.data.frames, adapter.frame_rule

    def read(media: Media) -> Tensor:
        return read_frames(media, frames=count, rule=rule)

    frames: Callable[[Media], Tensor] = read
    if kept is not None:
        opened = open_frames(
            read, adapter.processor(), count=count, rule=rule, folder=kept, room=10**12, say=print
        )
        assert opened is not None
        frames = opened
    scorer = Scorer(adapter, model, FrameCache(frames), batch)
    answers: dict[int, tuple[str, int]] = {}
    for some in scorer.answers(chunked(asked, batch)):
        answers |= some
    return [answers[place][0] for place in range(len(asked))]


def measure(arms: dict[str, Callable[[], list[str]]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each arm in each round; a round before them is not counted.

    Raises:
        SystemExit: two arms write different texts.
    """
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(rounds + 1):
        texts = {}
        for name in np.random.default_rng(number).permutation(list(arms)).tolist():
            begin = time.process_time()
            texts[name] = arms[name]()
            if number:
                seconds[name].append(time.process_time() - begin)
        if len({tuple(written) for written in texts.values()}) > 1:
            raise SystemExit(f"the arms write different texts: {texts}")
    return seconds


def table(result: dict[str, Any]) -> str:
    hardware = result["provenance"]["hardware"]
    lines = [
        "# Items of an evaluation a CPU second",
        "",
        f"Made by `python benchmarks/evaluation.py --pixels {result['pixels']}`: InternVL's classes at hidden "
        f"{result['hidden']}, 4 layers, "
        f"{result['items']} questions on {result['clips']} clips of {result['pixels']} pixels, "
        f"{result['most']} tokens at most, "
        f"{result['rounds']} alternating rounds after one that is not counted. {hardware.get('cpu', 'CPU')}, one "
        "computing thread; CPU time of all threads, on a machine that other processes may share. Every arm wrote the "
        "same texts. A toy model: what a GPU gains by batches is not in it.",
        "",
        "| arm | items a CPU second, median | beside the plain loop, median of rounds (least to most) |",
        "|---|---|---|",
    ]
    for name, arm in result["arms"].items():
        low, middle, high = arm["ratio"]
        lines.append(f"| {name} | {arm['items_a_cpu_second']:.1f} | {middle:.2f} ({low:.2f} to {high:.2f}) |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--clips", type=int, default=7)
    parser.add_argument("--pixels", type=int, default=64, help="along a side of the clips")
    parser.add_argument("--most", type=int, default=4, help="tokens of an answer")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        adapter = world(Path(folder), options)
        model = adapter.student().eval()
        clips = dict.fromkeys(question.media for question in adapter.data.questions)
        asked = [
            Request(f"{number} {place}", media, f"<media:0>\n{text}", limits=Limits(options.most, ()))
            for place, text in enumerate(QUESTIONS)
            for number, media in enumerate(clips)
        ]
        arms: dict[str, Callable[[], list[str]]] = {
            "plain loop": partial(plain_loop, adapter, model, asked, options.most),
            "harness, batch 1": partial(harness_answers, adapter, model, asked, 1),
            "harness, batch 3": partial(harness_answers, adapter, model, asked, 3),
            "harness, batch 9": partial(harness_answers, adapter, model, asked, 9),
            # The round that is not counted decodes them.
            "harness, batch 9, frames kept": partial(
                harness_answers, adapter, model, asked, 9, Path(folder) / "frames"
            ),
        }
        seconds = measure(arms, options.rounds)
    plain = seconds["plain loop"]
    ratios = {name: [base / own for base, own in zip(plain, values, strict=True)] for name, values in seconds.items()}
    result = {
        "provenance": provenance.collect(threads=1),
        **{name: getattr(options, name) for name in ("rounds", "hidden", "most", "pixels")},
        "clips": len(clips),
        "items": len(asked),
        "arms": {
            name: {
                "cpu_seconds": values,
                "items_a_cpu_second": len(asked) / statistics.median(values),
                "ratio": [min(ratios[name]), statistics.median(ratios[name]), max(ratios[name])],
            }
            for name, values in seconds.items()
        },
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "evaluation.json").write_text(json.dumps(result, indent=1) + "\n")
    (options.out / "evaluation.md").write_text(table(result))
    print(table(result))


if __name__ == "__main__":
    main()
