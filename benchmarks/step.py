"""What a training step costs: ReGATE's and its baseline's beside the steps that others take, on the same batches.

    python benchmarks/step.py                                     # every shape and arm; writes results/benchmarks/
    python benchmarks/step.py --shapes V512_N512 --arms a0 dense_packed gated_packed --rounds 9 --out /tmp/step
    python benchmarks/step.py --hidden 512 --rounds 11            # larger, slower

One randomly started decoder with rotary positions and grouped key heads; visual positions are embedded tokens, so no
vision tower is in the figures. A step is decision, forward pass, backward pass and AdamW. The arms alternate in one
process, in another order every round; on the CPU a step's time is CPU time of one thread, on a GPU the time between
two device events. Figures are medians over rounds of the ratio of two arms in the same round, with a 95 % bootstrap
interval; `control` is the dense packed step a second time, so what it differs from 1 by is noise.

The yardstick of elision is `gated_packed / dense_packed`: both arms pack their rows, compute logits where a target is
scored, and limit the last layer to what is read. `ideal` is the ratio of their FLOPs (causal attention below the
diagonal). The gain retained, eta, is (1 - ratio) / (1 - ideal).

Legend: B rows, S padded length, N targets of a row on average, V visual positions.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import statistics
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers

import regate
from harness.models.decoder_flops import step_flops
from harness.models.flops import decoder_shape
from harness.records import provenance

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor, nn

RESULTS = Path(__file__).resolve().parents[1] / "results" / "benchmarks"
PROMPT = 48


@dataclass(frozen=True)
class Shape:
    """Visual positions, mean targets of a row, vocabulary. Two rows have .6 and 1.4 times as many targets."""

    visual: int
    targets: int
    vocabulary: int = 1536

    @property
    def lengths(self) -> list[int]:
        return [self.visual + PROMPT + round(factor * self.targets) for factor in (0.6, 1.4)]


SHAPES = {
    "V1352_N104": Shape(1352, 104),
    "V768_N256": Shape(768, 256),
    "V512_N512": Shape(512, 512),
    "V192_N768": Shape(192, 768),
    "V512_N512_vocab16k": Shape(512, 512, 16384),
}


@dataclass
class Batch:
    """Padded rows, their layout, and the same rows as examples of a collator."""

    inputs: dict[str, Tensor]
    labels_BS: Tensor
    layout: regate.Layout
    sample_ids_B: Tensor

    @property
    def examples(self) -> list[dict[str, list[int]]]:
        rows = zip(self.inputs["input_ids"], self.labels_BS, self.inputs["attention_mask"].sum(dim=1), strict=True)
        return [{"input_ids": ids[:n].tolist(), "labels": labels[:n].tolist()} for ids, labels, n in rows]


@dataclass
class Bench:
    """One model, its optimizer, and the batches of all rounds."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    batches: list[Batch]
    device: torch.device
    gate: regate.Gate


def batch_of(shape: Shape, seed: int) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    longest = max(shape.lengths)
    ids_BS = torch.randint(3, shape.vocabulary, (len(shape.lengths), longest), generator=draw)
    mask_BS = (torch.arange(longest) < torch.tensor(shape.lengths)[:, None]).long()
    answer_BS = (torch.arange(longest) >= shape.visual + PROMPT) & (mask_BS == 1)
    labels_BS = torch.where(answer_BS, ids_BS, -100)
    visual_BS = (torch.arange(longest) < shape.visual).expand_as(ids_BS)
    layout = regate.layout_from_labels(labels_BS, mask_BS, visual_BS=visual_BS)
    ids = torch.arange(len(shape.lengths)) + 1000 * seed
    return Batch({"input_ids": ids_BS, "attention_mask": mask_BS}, labels_BS, layout, ids)


def build(shape: Shape, arguments: argparse.Namespace) -> Bench:
    """A decoder with the proportions of Qwen2-7B: four query heads to a key head, an MLP of 5.25 times the width, and
    with the small vocabulary 7 % of the work in the head."""
    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        vocab_size=shape.vocabulary,
        hidden_size=arguments.hidden,
        intermediate_size=round(5.25 * arguments.hidden),
        num_hidden_layers=arguments.layers,
        num_attention_heads=arguments.hidden // 64,
        num_key_value_heads=arguments.hidden // 256,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = transformers.Qwen2ForCausalLM._from_config(config, attn_implementation="sdpa", dtype=dtype)
    model = model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    settings = regate.GateConfig(selection="random", warmup_steps=0, dense_steps=0, keep_ratio=0.5)
    batches = [batch_of(shape, seed) for seed in range(arguments.rounds + arguments.warmup)]
    return Bench(model, optimizer, batches, device, regate.Gate(settings, None))


def on(bench: Bench, batch: Batch) -> dict[str, Tensor]:
    return {name: value.to(bench.device, non_blocking=True) for name, value in batch.inputs.items()}


# The arms: each is a context that prepares the model and gives the function that does a step's forward and backward.


@contextmanager
def own(bench: Bench, *, gate: Any = None, **attach: Any) -> Iterator[Callable[[Batch], None]]:
    """A step of this project: dense or gated, packed or padded."""
    elide = regate.attach(bench.model, **attach)
    student = regate.ScoredLM(bench.model)
    gate = regate.DenseGate() if gate is None else gate

    def step(batch: Batch) -> None:
        decision = gate.decide(batch.layout, batch.sample_ids_B, step=0)
        with elide(decision):
            logits_NV = student(predictor_BS=decision.predictor_BS, **on(bench, batch))
        loss_N = regate.token_loss(logits_NV, decision.targets_N.to(bench.device, non_blocking=True))
        (loss_N.sum() / decision.counts.scored).backward()
        gate.observe(decision, loss_N)

    try:
        yield step
    finally:
        elide.remove()


@contextmanager
def as_shipped(bench: Bench) -> Iterator[Callable[[Batch], None]]:
    """transformers as it is: padded rows, logits everywhere, its own loss."""

    def step(batch: Batch) -> None:
        labels_BS = batch.labels_BS.to(bench.device, non_blocking=True)
        bench.model(**on(bench, batch), labels=labels_BS, use_cache=False).loss.backward()

    yield step


@contextmanager
def trainer(bench: Bench) -> Iterator[Callable[[Batch], None]]:
    """What the transformers Trainer calls for a step."""
    arguments = transformers.TrainingArguments(
        output_dir="unused", report_to="none", use_cpu=bench.device.type == "cpu", save_strategy="no"
    )
    runner = transformers.Trainer(model=bench.model, args=arguments)
    runner.current_gradient_accumulation_steps = 1

    def step(batch: Batch) -> None:
        inputs = {**batch.inputs, "labels": batch.labels_BS}
        runner.training_step(bench.model, inputs, num_items_in_batch=(batch.labels_BS != -100).sum())

    yield step


@contextmanager
def flattened(bench: Bench) -> Iterator[Callable[[Batch], None]]:
    """TRL's padding-free collation: one row, whose borders transformers reads from the positions."""
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    collate = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)

    def step(batch: Batch) -> None:
        made = collate(batch.examples).items()
        inputs = {name: value.to(bench.device) if hasattr(value, "to") else value for name, value in made}
        bench.model(**inputs, use_cache=False).loss.backward()

    yield step


@contextmanager
def layer_token_dropping(bench: Bench) -> Iterator[Callable[[Batch], None]]:
    """Random layer-token dropping (arXiv 2211.11586): each layer but the first and the last computes a random part of
    the positions, of the size that the gate leaves active."""
    layers: Any = bench.model.get_decoder().layers  # type: ignore[operator]
    dense = as_shipped(bench)

    def step(batch: Batch) -> None:
        counts = bench.gate.decide(batch.layout, batch.sample_ids_B, step=0).counts
        kept = round(batch.labels_BS.shape[1] * counts.active / counts.valid)
        for layer in layers[1:-1]:
            layer.forward = partial(_on_some_tokens, layer, kept)
        try:
            plain(batch)
        finally:
            for layer in layers[1:-1]:
                del layer.forward

    with dense as plain:
        yield step


def _on_some_tokens(layer: nn.Module, kept: int, hidden_BSD: Tensor, **inputs: Any) -> Tensor:
    rows, length, width = hidden_BSD.shape
    place_BK = torch.rand(rows, length, device=hidden_BSD.device).argsort(dim=1)[:, :kept].sort(dim=1).values
    index_BKD = place_BK[:, :, None].expand(-1, -1, width)
    rotary = tuple(
        part.expand(rows, -1, -1).gather(1, place_BK[:, :, None].expand(-1, -1, part.shape[2]))
        for part in inputs["position_embeddings"]
    )
    inputs |= {"position_embeddings": rotary, "position_ids": None, "attention_mask": None}  # causal: in order
    out_BKD = type(layer).forward(layer, hidden_BSD.gather(1, index_BKD), **inputs)
    return hidden_BSD.scatter(1, index_BKD, out_BKD)


def arms_of(bench: Bench) -> dict[str, Any]:
    packed: dict[str, Any] = {"rows": "packed", "outputs": "predictors"}
    return {
        "a0": partial(as_shipped, bench),
        "trainer": partial(trainer, bench),
        "trl_padding_free": partial(flattened, bench),
        "layer_token_dropping": partial(layer_token_dropping, bench),
        "dense_padded": partial(own, bench),
        "dense_packed": partial(own, bench, **packed),
        "control": partial(own, bench, **packed),
        "gated_padded": partial(own, bench, gate=bench.gate),
        "gated_packed": partial(own, bench, gate=bench.gate, **packed),
        "dense_packed_whole": partial(own, bench, rows="packed"),
        "gated_packed_whole": partial(own, bench, gate=bench.gate, rows="packed"),
        "loss_only": partial(own, bench, gate=_LossOnly(bench.gate), **packed),
        "layerwise": partial(own, bench, gate=bench.gate, execution="layerwise"),
    }


class _LossOnly:
    """Everything computed, half of the targets scored (as RHO-1 does)."""

    def __init__(self, gate: regate.Gate) -> None:
        self._gate = regate.Gate(regate.GateConfig(**{**_settings(gate), "execution": "loss_only"}), None)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._gate, name)


def _settings(gate: regate.Gate) -> dict[str, Any]:
    names = ("selection", "warmup_steps", "dense_steps", "keep_ratio")
    return {name: getattr(gate.config, name) for name in names}


DESCRIPTION = {
    "a0": "transformers as shipped: padded rows, logits everywhere",
    "trainer": "the transformers Trainer's own step",
    "trl_padding_free": "TRL's padding-free collation",
    "layer_token_dropping": "random layer-token dropping, the share of positions that the gate elides",
    "dense_padded": "baseline, padded rows",
    "dense_packed": "baseline, packed rows",
    "control": "baseline, packed rows, a second time",
    "gated_padded": "gated, padded rows",
    "gated_packed": "gated, packed rows",
    "dense_packed_whole": "baseline, packed rows, last layer on every position",
    "gated_packed_whole": "gated, packed rows, last layer on every position",
    "loss_only": "everything computed, half of the targets scored, packed rows",
    "layerwise": "Algorithm 1 layer by layer and sample by sample",
}
PAIRS = {"gated_packed": "dense_packed", "gated_packed_whole": "dense_packed_whole", "gated_padded": "dense_padded"}


# Measuring.


def seconds(bench: Bench, step: Callable[[Batch], None], batch: Batch) -> float:
    """One whole step, optimizer included."""
    if bench.device.type == "cuda":
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        began.record()
    start = time.process_time()
    step(batch)
    bench.optimizer.step()
    bench.optimizer.zero_grad(set_to_none=True)
    if bench.device.type == "cuda":
        ended.record()
        ended.synchronize()
        return float(began.elapsed_time(ended)) / 1e3
    return time.process_time() - start


def measure(shape: Shape, arguments: argparse.Namespace) -> dict[str, Any]:
    """Rounds of all arms. The first `warmup` rounds are not counted."""
    bench = build(shape, arguments)
    arms = {name: arm for name, arm in arms_of(bench).items() if name in arguments.arms}  # a0 first
    rounds: list[dict[str, float]] = []
    for number, batch in enumerate(bench.batches):
        names = list(arms)
        turn = number % len(names)
        order = names[turn:] + names[:turn]
        row = {}
        for name in order if number % 2 else reversed(order):
            gc.collect()
            with arms[name]() as step:
                row[name] = seconds(bench, step, batch)
        row = {name: row[name] for name in names}
        if number >= arguments.warmup:
            rounds.append(row)
        print(f"round {number}: " + ", ".join(f"{name} {row[name]:.2f}" for name in names), flush=True)
    return {"shape": asdict(shape), "lengths": shape.lengths, **figures(bench, shape, rounds)}


def figures(bench: Bench, shape: Shape, rounds: list[dict[str, float]]) -> dict[str, Any]:
    work = {name: flops_of(bench, name) for name in rounds[0]}
    base = "a0" if "a0" in rounds[0] else next(iter(rounds[0]))
    rows = {}
    for name in rounds[0]:
        rows[name] = {
            "seconds": statistics.median(row[name] for row in rounds),
            "to_shipped": interval([row[name] / row[base] for row in rounds]),
            "flops": work[name],
        }
        other = PAIRS.get(name)
        if other in rounds[0]:
            ratio = interval([row[name] / row[other] for row in rounds])
            ideal = work[name] / work[other]
            eta = [(1 - ratio[key]) / (1 - ideal) for key in ("median", "high", "low")]
            rows[name]["elision"] = {
                "beside": other, "ratio": ratio, "ideal": ideal, "eta": dict(zip(ratio, eta, strict=True)),
            }  # fmt: skip
    targets = sum(round(factor * shape.targets) for factor in (0.6, 1.4))
    return {"share_of_targets": targets / sum(shape.lengths), "rounds": len(rounds), "arms": rows, "raw": rounds}


def interval(values: list[float]) -> dict[str, float]:
    """Median and its 95 % percentile bootstrap interval, with a fixed seed."""
    draws = np.random.default_rng(0).choice(values, size=(4000, len(values)))
    low, high = np.percentile(np.median(draws, axis=1), [2.5, 97.5])
    return {"median": statistics.median(values), "low": float(low), "high": float(high)}


def flops_of(bench: Bench, name: str) -> float:
    """FLOPs of a step as the arm executes it, with causal attention below the diagonal."""
    shape, batch = decoder_shape(bench.model.config), bench.batches[0]
    gate = bench.gate if name.startswith("gated") or name in ("layerwise", "layer_token_dropping") else None
    decision = (gate or regate.DenseGate()).decide(batch.layout, batch.sample_ids_B, step=0)
    rows, width = batch.labels_BS.shape
    active_B, scored = decision.active_BS.sum(dim=1).tolist(), decision.counts.scored
    last = scored if name in ("dense_packed", "control", "gated_packed", "loss_only") else None
    if name == "loss_only":
        scored = last = bench.gate.decide(batch.layout, batch.sample_ids_B, step=0).counts.scored
    if name in ("a0", "trainer"):
        return step_flops(shape, [width] * rows, rows * width)
    if name == "trl_padding_free":
        return step_flops(shape, active_B, sum(active_B))
    if name == "layer_token_dropping":
        kept = round(width * decision.counts.active / decision.counts.valid)
        whole, part = step_flops(shape, [width] * rows, rows * width), step_flops(shape, [kept] * rows, rows * width)
        return whole - (whole - part) * (shape.layers - 2) / shape.layers
    if name == "dense_padded":
        active_B = [width] * rows
    elif name == "gated_padded":
        active_B = [max(active_B)] * rows
    return step_flops(shape, active_B, scored, last_layer=last)


# The table.


def table(report: dict[str, Any]) -> str:
    lines = [
        "# Time of a training step",
        "",
        f"Made by `python benchmarks/step.py`: {report['command']}. {report['hardware']}. {report['clock']}",
        "",
        "Each cell is an arm's time beside transformers as shipped (median, 95 % interval) and, after the bar, its "
        "FLOPs beside it. `control` is `dense_packed` a second time.",
        "",
        "| arm | " + " | ".join(report["shapes"]) + " |",
        "|---" * (1 + len(report["shapes"])) + "|",
    ]
    for name, words in DESCRIPTION.items():
        cells = [_cell(shape, name) for shape in report["shapes"].values()]
        lines.append(f"| `{name}`: {words} | " + " | ".join(cells) + " |")
    lines += ["", "What elision alone saves. eta is the gain retained: (1 - ratio) / (1 - ideal).", ""]
    lines += ["| shape | targets of all positions | arms | ratio | ideal | eta |", "|---|---|---|---|---|---|"]
    for label, shape in report["shapes"].items():
        for name, row in shape["arms"].items():
            if "elision" in row:
                found = row["elision"]
                lines.append(
                    f"| {label} | {shape['share_of_targets']:.2f} | `{name}` / `{found['beside']}` | "
                    f"{_range(found['ratio'])} | {found['ideal']:.3f} | {_range(found['eta'], 2)} |"
                )
    shapes = {label: shape for label, shape in report["shapes"].items() if "control" in shape["arms"]}
    control = [f"{label} {_range(_control(shape))}" for label, shape in shapes.items()]
    return "\n".join([*lines, "", "Dense beside dense (noise): " + "; ".join(control) + ".", *_missing(report), ""])


def _control(shape: dict[str, Any]) -> dict[str, float]:
    return interval([row["control"] / row["dense_packed"] for row in shape["raw"]])


def _cell(shape: dict[str, Any], name: str) -> str:
    row = shape["arms"].get(name)
    if row is None:
        return "not run"
    base = next(iter(shape["arms"].values()))["flops"]
    return f"{_range(row['to_shipped'])} \\| {row['flops'] / base:.3f}"


def _range(value: dict[str, float], digits: int = 3) -> str:
    return f"{value['median']:.{digits}f} ({value['low']:.{digits}f} to {value['high']:.{digits}f})"


def _missing(report: dict[str, Any]) -> list[str]:
    return ["", f"Not run: {', '.join(report['not_run'])}."] if report["not_run"] else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--arms", nargs="+", choices=list(DESCRIPTION), default=list(DESCRIPTION))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--hidden", type=int, default=256, help="a multiple of 256")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--out", type=Path, default=RESULTS / "step", help="without suffix")
    arguments = parser.parse_args()
    not_run = []
    if "trl_padding_free" in arguments.arms and importlib.util.find_spec("trl") is None:
        arguments.arms.remove("trl_padding_free")
        not_run.append("`trl_padding_free` (trl is not installed)")
    torch.set_num_threads(1)
    where = provenance.collect(threads=1)
    on_gpu = torch.cuda.is_available()
    report: dict[str, Any] = {
        "schema": 1,
        "command": f"hidden {arguments.hidden}, {arguments.layers} layers, {arguments.rounds} rounds",
        "clock": "Device time." if on_gpu else "CPU time of one thread; other work may have run on the machine.",
        "hardware": torch.cuda.get_device_name() if on_gpu else f"{where['hardware']['cpu']}, one thread",
        "provenance": where,
        "not_run": not_run,
        "shapes": {},
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    for label in arguments.shapes:
        print(label, flush=True)
        report["shapes"][label] = measure(SHAPES[label], arguments)
        arguments.out.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
        arguments.out.with_suffix(".md").write_text(table(report))
    print(table(report))


if __name__ == "__main__":
    main()
