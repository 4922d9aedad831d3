"""What one GPU has to show before a large run is trusted to it, in one call or, by `--only`, in several short ones.

    python benchmarks/gpu.py --out /tmp/gpu                      # all checks, nothing downloaded
    python benchmarks/gpu.py --only sync step --out /tmp/gpu

Prints one line a check (name, what was seen, what is demanded, PASS, FAIL or INFO, seconds) and writes gpu.json after
each, so that a call that is cut off keeps what it had. A check that fails or takes too long ends itself and not the
others. Weights are random, of Qwen2-7B's width with as many layers as `--layers` says.

Without a GPU the same checks run at toy size, which tests this script and says nothing about speed: their limits are
not judged, and the checks that need a GPU are named as not run.

Not part of it: several GPUs (NCCL between them, `devices.sharding: node`, time-outs), and VideoChat2's vision side.

Legend: B rows, S padded length, N scored targets, V vocabulary.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
import warnings
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import decode as clips  # benchmarks/decode.py, beside this file
import numpy as np
import step as steps  # benchmarks/step.py
import torch
import transformers
from accelerate import Accelerator
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset

import regate
from harness.cli.probe import kernels
from harness.config.recipe import Devices
from harness.data.loading.video import decode as read_clip
from harness.models.videollama2.connector import make_connector
from harness.models.videollama2.sizes import TOWERS
from harness.records import provenance
from harness.training.launching import processes
from harness.training.placement.parallel import Replicated, Sharded
from regate.attention import KERNELS, PackedRows, missing

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[1]
CLIPS_A_SECOND = 12.0
"""That four GPUs train on, by the plan of VideoLLaMA2."""
PACKED: dict[str, Any] = {"rows": "packed", "outputs": "predictors"}


@dataclass(frozen=True)
class Setting:
    """Sizes of all checks."""

    gpu: bool
    hidden: int
    layers: int
    rounds: int
    shape: steps.Shape
    out: Path

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if self.gpu else "cpu")

    def bench(self) -> steps.Bench:
        return steps.build(self.shape, argparse.Namespace(**{**asdict(self), "warmup": 1}))


@dataclass(frozen=True)
class Seen:
    """What a check saw. `passed` is None where nothing is demanded."""

    figure: str
    passed: bool | None = None
    values: dict[str, Any] | None = None


def environment(setting: Setting) -> Seen:
    shared = shutil.disk_usage("/dev/shm").total / 1e9 if Path("/dev/shm").is_dir() else None
    values = {"torch": torch.__version__, "cuda": torch.version.cuda, "cores": os.cpu_count(), "shared_gb": shared}
    values["kernels"] = kernels(setting.device)
    name = torch.cuda.get_device_name() if setting.gpu else "no GPU"
    return Seen(f"{name}, /dev/shm {shared or 0:.1f} GB", bool(shared and shared >= 16), values)


def sync(setting: Setting) -> Seen:
    """Warnings of torch's sync debug mode over a dense and a sparse step, forward to optimizer."""
    bench = setting.bench()
    counts = {}
    for name, gate in (("dense", None), ("sparse", bench.gate)):
        with steps.own(bench, gate=gate, **PACKED) as one_step:
            steps.seconds(bench, one_step, bench.batches[0])
            torch.cuda.synchronize()
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                torch.cuda.set_sync_debug_mode("warn")
                try:
                    one_step(bench.batches[1])
                    bench.optimizer.step()
                    bench.optimizer.zero_grad(set_to_none=True)
                finally:
                    torch.cuda.set_sync_debug_mode("default")
            found = [f"{Path(w.filename).name}:{w.lineno}" for w in caught if "synchroniz" in str(w.message)]
            counts[name] = found
    return Seen(", ".join(f"{name} {len(found)}" for name, found in counts.items()), not any(counts.values()), counts)


def attention(setting: Setting) -> Seen:
    """Forward and backward of each kernel on the packed rows of a batch, beside sdpa row by row."""
    lengths = tuple(setting.shape.lengths)
    heads = max(setting.hidden // 128, 1)
    times = {}
    for name in KERNELS:
        if missing(name) is not None:
            continue
        parts = torch.randn(3, 1, heads, sum(lengths), 64, device=setting.device, dtype=_half(setting))
        query, key, value = (part.clone().requires_grad_() for part in parts)
        bounds = torch.tensor([0, *lengths], dtype=torch.int32, device=setting.device).cumsum(0, dtype=torch.int32)
        given = {"cu_seq_lens_q": bounds, "max_length_q": max(lengths)}

        def once(name: str = name, inputs: Any = (query, key, value), given: Any = given) -> None:
            KERNELS[name](*inputs, PackedRows(name, lengths), given).float().sum().backward()

        times[name] = _median_time(setting, once)
    best = min(times, key=lambda name: times[name])
    listed = ", ".join(f"{name} {1e3 * seconds:.2f} ms" for name, seconds in times.items())
    automatic = next((name for name in ("flash_attention_3", "flash_attention_2", "varlen") if name in times), "sdpa")
    return Seen(listed, times[automatic] <= 1.1 * times[best], {"seconds": times, "auto": automatic})


def head(setting: Setting) -> Seen:
    """Logits and loss of the scored rows beside those of all positions: time and peak memory."""
    rows = {"scored": sum(setting.shape.lengths) // 4, "all": sum(setting.shape.lengths)}
    weight = torch.randn(setting.shape.vocabulary, setting.hidden, device=setting.device, dtype=_half(setting))
    values: dict[str, dict[str, float]] = {}
    for name, count in rows.items():
        hidden = torch.randn(count, setting.hidden, device=setting.device, dtype=_half(setting), requires_grad=True)
        targets = torch.randint(setting.shape.vocabulary, (count,), device=setting.device)

        def once(hidden: Any = hidden, targets: Any = targets) -> None:
            regate.token_loss(hidden @ weight.T, targets).sum().backward()

        held = _start_peak(setting)
        values[name] = {"seconds": _median_time(setting, once), "peak_gb": _peak(setting, held)}
        logits = 2 * count * setting.shape.vocabulary * _half(setting).itemsize / 1e9  # and their gradient
        values[name]["logits_gb"] = logits
    extra = max(value["peak_gb"] - value["logits_gb"] for value in values.values())
    figure = ", ".join(f"{name} {1e3 * v['seconds']:.1f} ms {v['peak_gb']:.2f} GB" for name, v in values.items())
    return Seen(figure, extra < 0.5, values)


def step(setting: Setting) -> Seen:
    """Gated beside dense, both packed: the ratio, its FLOPs' ideal and the gain retained."""
    bench = setting.bench()
    wanted = ("dense_packed", "control", "gated_packed")
    arms = {name: arm for name, arm in steps.arms_of(bench).items() if name in wanted}
    rounds = []
    for number, batch in enumerate(bench.batches):
        order = list(arms)[number % 3 :] + list(arms)[: number % 3]
        row = {}
        for name in order:
            with arms[name]() as one_step:
                row[name] = steps.seconds(bench, one_step, batch)
        rounds.append(row)
    found = steps.figures(bench, setting.shape, rounds[1:])
    elision = found["arms"]["gated_packed"]["elision"]
    eta = elision["eta"]["median"]
    dense = found["arms"]["dense_packed"]
    figure = (
        f"ratio {elision['ratio']['median']:.3f}, ideal {elision['ideal']:.3f}, eta {eta:.2f}, "
        f"dense {dense['flops'] / dense['seconds'] / 1e12:.2f} TFLOP/s"
    )
    return Seen(figure, eta >= 0.9, found)


def recompute(setting: Setting) -> Seen:
    """All layers recomputed, half of them, none: time and peak memory of a dense step."""
    bench = setting.bench()
    model: Any = bench.model
    model.gradient_checkpointing_enable({"use_reentrant": False})
    values = {}
    for count in (setting.layers, setting.layers // 2, 0):
        for place, layer in enumerate(model.get_decoder().layers):
            layer.gradient_checkpointing = place < count
        with steps.own(bench, **PACKED) as one_step:
            steps.seconds(bench, one_step, bench.batches[0])
            held = _start_peak(setting)
            times = [steps.seconds(bench, one_step, batch) for batch in bench.batches]
            values[str(count)] = {"seconds": statistics.median(times), "peak_gb": _peak(setting, held)}
    every, half = (values[str(count)]["seconds"] for count in (setting.layers, setting.layers // 2))
    figure = ", ".join(f"{name} layers {v['seconds']:.3f} s {v['peak_gb']:.2f} GB" for name, v in values.items())
    return Seen(f"{figure}; half / all {half / every:.2f}", half < 0.95 * every, values)


def parity(setting: Setting) -> Seen:
    """Losses of ten steps in float32 and under bfloat16 autocast, dense and sparse, from the same weights."""
    values: dict[str, list[float]] = {}
    for name in ("dense float32", "dense bfloat16", "sparse float32", "sparse bfloat16"):
        small = replace(setting, hidden=256, layers=2, shape=replace(setting.shape, vocabulary=1536))
        bench = small.bench()
        bench.model.float()
        gate = bench.gate if name.startswith("sparse") else regate.DenseGate()
        half = name.endswith("bfloat16")
        elide, student = regate.attach(bench.model, **PACKED), regate.ScoredLM(bench.model)
        losses = []
        for _ in range(10):
            decision = gate.decide(bench.batches[0].layout, bench.batches[0].sample_ids_B, step=0)
            with torch.autocast(bench.device.type, torch.bfloat16, enabled=half), elide(decision):
                logits = student(predictor_BS=decision.predictor_BS, **steps.on(bench, bench.batches[0]))
            loss = regate.token_loss(logits, decision.targets_N.to(bench.device)).mean()
            loss.backward()
            bench.optimizer.step()
            bench.optimizer.zero_grad(set_to_none=True)
            losses.append(float(loss.detach()))
        values[name] = losses
    gap = max(
        abs(full - half) / full
        for arm in ("dense", "sparse")
        for full, half in zip(values[f"{arm} float32"], values[f"{arm} bfloat16"], strict=True)
    )
    return Seen(f"largest gap of ten losses {gap:.2%}", gap < 0.01, values)


def mask(setting: Setting) -> Seen:
    """Dense steps of padded and of packed rows and gated ones of packed rows: seconds, and which attention ran."""
    bench = setting.bench()
    arms = steps.arms_of(bench)
    values: dict[str, dict[str, Any]] = {}
    for name in ("dense_padded", "dense_packed", "gated_packed"):
        with arms[name]() as one_step:
            steps.seconds(bench, one_step, bench.batches[0])
            times = [steps.seconds(bench, one_step, batch) for batch in bench.batches]
            with torch.profiler.profile() as profile:
                one_step(bench.batches[0])
        ran = {event.key for event in profile.key_averages() if re.search("_attention|varlen", event.key)}
        values[name] = {"seconds": statistics.median(times), "attention": sorted(ran)}
    padded, dense, gated = (values[name] for name in ("dense_padded", "dense_packed", "gated_packed"))
    figure = ", ".join(f"{name} {value['seconds']:.3f} s" for name, value in values.items())
    same = dense["attention"] == gated["attention"]
    passed = same and dense["seconds"] <= padded["seconds"]
    return Seen(f"{figure}; {'the same' if same else 'another'} attention in both arms", passed, values)


def lora(setting: Setting) -> Seen:
    """LoRA of rank 16 in float32 on a frozen decoder of 28 layers: seconds of a step, peak memory, the ratio."""
    from peft import LoraConfig, get_peft_model

    layers = 28 if setting.gpu else setting.layers
    bench = replace(setting, layers=layers).bench()
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model: Any = get_peft_model(bench.model, LoraConfig(r=16, lora_alpha=32, target_modules=targets))  # type: ignore[arg-type]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.data = parameter.data.float()
    bench.model, bench.optimizer = model, torch.optim.AdamW(trained, lr=1e-4)
    values: dict[str, dict[str, float]] = {}
    for name, gate in (("dense", None), ("gated", bench.gate)):
        with steps.own(bench, gate=gate, **PACKED) as plain:

            def one_step(batch: Any, plain: Any = plain) -> None:
                with torch.autocast(bench.device.type, torch.bfloat16, enabled=setting.gpu):
                    plain(batch)

            steps.seconds(bench, one_step, bench.batches[0])
            held = _start_peak(setting)
            times = [steps.seconds(bench, one_step, batch) for batch in bench.batches]
            values[name] = {"seconds": statistics.median(times), "peak_gb": _peak(setting, held) + held / 1e9}
    ratio = values["gated"]["seconds"] / values["dense"]["seconds"]
    figure = ", ".join(f"{name} {value['seconds']:.3f} s {value['peak_gb']:.1f} GB" for name, value in values.items())
    return Seen(f"{figure}; ratio {ratio:.3f}", values["dense"]["peak_gb"] <= 72, values)


def ragged(setting: Setting) -> Seen:
    """Sixty gated steps of ragged lengths: what the allocator holds beside what is used, and how often it gave up."""
    bench = replace(setting, rounds=59 if setting.gpu else 3).bench()
    draw = np.random.default_rng(0)
    with steps.own(bench, gate=bench.gate, **PACKED) as one_step:
        for seed in range(len(bench.batches)):
            targets = max(1, round(setting.shape.targets * draw.lognormal(0, 0.8)))
            targets = min(targets, 4 * setting.shape.targets)
            steps.seconds(bench, one_step, steps.batch_of(replace(setting.shape, targets=targets), seed))
    values = {"steps": len(bench.batches), "allocator": os.environ.get("PYTORCH_ALLOC_CONF", "as it is")}
    if setting.gpu:
        used, held = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        retries = torch.cuda.memory_stats()["num_alloc_retries"]
        values |= {"used_gb": used / 1e9, "held_gb": held / 1e9, "retries": retries}
        figure = f"held / used {held / used:.2f}, {retries} retries"
        return Seen(figure, held <= 1.15 * used and retries == 0, values)
    return Seen(f"{len(bench.batches)} steps", None, values)


def fragmentation(setting: Setting) -> Seen:
    """`ragged` in a process of its own, with the allocator's growing segments."""
    folder = setting.out.parent / "growing"
    command = [sys.executable, __file__, "--only", "ragged", "--layers", str(setting.layers), "--out", str(folder)]
    growing = {**os.environ, "PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    subprocess.run(command, env=growing, cwd=ROOT, check=False, capture_output=True)
    row = json.loads((folder / "gpu.json").read_text())["checks"]["ragged"]
    return Seen(row["figure"], row["result"] == "PASS", row["values"])


def fsdp1(setting: Setting, *, offload: bool = False) -> Seen:
    """A model in parts on one device: three steps, a checkpoint, one more; the last one again from the checkpoint;
    and the same steps of a whole model. Head and embeddings are shared, and layers are computed again."""
    small = replace(setting, hidden=min(setting.hidden, 1792), layers=min(setting.layers, 4))
    devices = Devices(sharding="full", offload=offload)
    folder = setting.out.parent / f"checkpoint-{offload}"
    with processes.group_of_one(devices):
        accelerator = Accelerator(mixed_precision="bf16" if setting.gpu else "no", cpu=not setting.gpu)
        whole = _losses(small, Replicated(accelerator, *_student(small)), range(4))
        parts = _sharded(small, accelerator, devices)
        losses = _losses(small, parts, range(3))
        folder.mkdir(parents=True, exist_ok=True)
        saved = _wall(setting, lambda: parts.save(folder))
        losses += _losses(small, parts, range(3, 4))
        again = _sharded(small, accelerator, devices)
        loaded = _wall(setting, lambda: again.load(folder))
        last = _losses(small, again, range(3, 4))
        exported: list[nn.Module] = []
        again.export(exported.append)
    size = sum(path.stat().st_size for path in folder.iterdir()) / 1e9
    shutil.rmtree(folder)
    gap = max(abs(one - other) / other for one, other in zip(losses, whole, strict=True))
    values = {"losses": losses, "whole": whole, "again": last, "gb": size, "save_s": saved, "load_s": loaded}
    figure = f"largest gap to whole {gap:.2%}, resumed step {'equal' if last == losses[3:] else 'NOT equal'}"
    passed = gap < 0.01 and last == losses[3:] and len(exported) == 1
    return Seen(f"{figure}, {size:.2f} GB", passed, values)


def offload(setting: Setting) -> Seen:
    """The same with weights, gradients and AdamW's state in the machine's memory."""
    return fsdp1(setting, offload=True)


def compiled(setting: Setting) -> Seen:
    """Each layer compiled for lengths that change, beside the layers as they are: seconds of a gated step, graphs."""
    bench = setting.bench()
    targets = [max(8, setting.shape.targets - 3 * place) for place in range(8 if setting.gpu else 3)]
    batches = [steps.batch_of(replace(setting.shape, targets=number), number) for number in targets]
    values: dict[str, float] = {}
    model: Any = bench.model
    for name in ("plain", "compiled"):
        if name == "compiled":
            torch._dynamo.reset()
            for layer in model.get_decoder().layers:
                layer.compile(dynamic=True, backend="inductor" if setting.gpu else "eager")
        with steps.own(bench, gate=bench.gate, **PACKED) as one_step:
            first = _wall(setting, lambda one_step=one_step: steps.seconds(bench, one_step, batches[0]))
            times = [steps.seconds(bench, one_step, batch) for batch in batches]
        values |= {f"{name}_first_s": first, f"{name}_s": statistics.median(times)}
    graphs = sum(torch._dynamo.utils.counters["stats"].get(key, 0) for key in ("unique_graphs",))
    gain = 1 - values["compiled_s"] / values["plain_s"]
    figure = f"gain {gain:.1%}, {graphs} graphs, first step {values['compiled_first_s']:.0f} s"
    return Seen(figure, gain >= 0.05, {**values, "graphs": graphs})


def tower(setting: Setting) -> Seen:
    """The frozen SigLIP-so400m on the frames of four clips, and the trained connector behind it, as it is and
    computed again in the backward pass."""
    sizes = dict(TOWERS["siglip-so400m-patch14-384"])
    frames, hidden = (16, setting.hidden) if setting.gpu else (4, 64)
    if not setting.gpu:
        sizes |= {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        sizes |= {"image_size": 84}
    kind = sizes.pop("model_type")
    config = transformers.AutoConfig.for_model(kind, **sizes)
    with torch.device(setting.device):
        vision = transformers.AutoModel.from_config(config, trust_remote_code=False).to(_half(setting)).eval()
        connector: Any = make_connector("stc_connector_v35", sizes["hidden_size"], hidden).train()
    connector._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
    pixels = torch.rand(4 * frames, 3, sizes["image_size"], sizes["image_size"], device=setting.device)
    values: dict[str, dict[str, float]] = {}

    def read() -> torch.Tensor:
        with torch.no_grad():
            features: torch.Tensor = vision(pixel_values=pixels.to(_half(setting))).last_hidden_state
        return features.float()

    values["tower"] = {"seconds": _median_time(setting, read), "peak_gb": 0.0}
    features = read()
    for name, again in (("connector", False), ("connector, again", True)):

        connector.gradient_checkpointing = again

        def once() -> None:
            with torch.autocast(setting.device.type, torch.bfloat16, enabled=setting.gpu):
                out = connector(features, [frames] * 4, frames)
            out.float().sum().backward()

        held = _start_peak(setting)
        values[name] = {"seconds": _median_time(setting, once), "peak_gb": _peak(setting, held)}
    figure = ", ".join(f"{name} {1e3 * v['seconds']:.0f} ms {v['peak_gb']:.2f} GB" for name, v in values.items())
    return Seen(figure, values["connector, again"]["peak_gb"] <= 3, values)


def decode(setting: Setting) -> Seen:
    """Clips a second that loading processes read and scale to 16 frames of 384 x 384: of 30 s and 360 lines, made
    here."""
    clip = setting.out.parent / "clip.mp4"
    if not clip.exists():
        clips.make(clip, *(clips.CLIPS["360p_30s"] if setting.gpu else (64, 48, 10, 20)))
    rates = {}
    for workers in (4, 8, 16) if setting.gpu else (1,):
        number = 16 * workers if setting.gpu else 4
        loader: Any = DataLoader(_Clips(clip, number), batch_size=4, num_workers=workers)
        rates[str(workers)] = number / _wall(setting, lambda loader=loader: list(loader))
    figure = ", ".join(f"{workers} processes {rate:.1f} clips/s" for workers, rate in rates.items())
    return Seen(figure, max(rates.values()) >= 1.3 * CLIPS_A_SECOND, rates)


def copies(setting: Setting) -> Seen:
    """A micro-batch of four clips of 16 frames to the device: float32 pageable, uint8 pinned and normalised there."""
    clip = (4, 16, 3, 384, 384)
    pageable = torch.zeros(clip)
    pinned = torch.zeros(clip, dtype=torch.uint8).pin_memory()
    times = {
        "float32 pageable": _median_time(setting, lambda: pageable.to(setting.device)),
        "uint8 pinned": _median_time(setting, lambda: pinned.to(setting.device, non_blocking=True).float().div_(255)),
    }
    figure = ", ".join(f"{name} {1e3 * seconds:.1f} ms" for name, seconds in times.items())
    return Seen(figure, times["uint8 pinned"] <= 3e-3, times)


def generate(setting: Setting) -> Seen:
    """Items per second of greedy answers of four tokens, batch 1 and 8."""
    bench = setting.bench()
    model: Any = bench.model.eval()
    prompts = torch.randint(3, setting.shape.vocabulary, (8, setting.shape.visual + 64), device=setting.device)
    rates = {}
    for batch in (1, 8):

        def once(batch: int = batch) -> None:
            ids, mask = prompts[:batch], torch.ones_like(prompts[:batch])
            model.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=False, pad_token_id=0)

        with torch.inference_mode():
            rates[str(batch)] = batch / _median_time(setting, once)
    figure = ", ".join(f"batch {batch} {rate:.2f} items/s" for batch, rate in rates.items())
    return Seen(figure, rates["8"] >= 3 * rates["1"] if setting.gpu else None, rates)


def end_to_end(setting: Setting) -> Seen:
    """`harness run` of the smoke pair: training on this device, evaluation, table."""
    folder = setting.out.parent / "gpu-runs"
    places = [f"paths.{name}={folder / name}" for name in ("data", "weights", "stores", "results")]
    command = [sys.executable, "-m", "harness", "run", "tiny_smoke_baseline", "tiny_smoke_regate", *places]
    done = subprocess.run([*command, "track.mlflow=false"], capture_output=True, text=True, check=False, cwd=ROOT)
    last = (done.stderr.strip().splitlines() or [""])[-1]
    return Seen(f"exit {done.returncode}{f', {last}' if done.returncode else ''}", done.returncode == 0)


@dataclass(frozen=True)
class Check:
    run: Callable[[Setting], Seen]
    demand: str
    limit_s: int
    needs_gpu: bool = False


CHECKS = {
    "environment": Check(environment, "/dev/shm >= 16 GB", 60),
    "sync": Check(sync, "a step waits for nothing", 60, needs_gpu=True),
    "attention": Check(attention, "auto within 10 % of the fastest", 60),
    "step": Check(step, "eta >= 0.9", 120),
    "head": Check(head, "peak: the logits and their gradient, + 0.5 GB", 40),
    "recompute": Check(recompute, "half of the layers < 0.95 of all", 80),
    "parity": Check(parity, "bfloat16 within 1 % of float32", 60),
    "mask": Check(mask, "packed <= padded, one attention in both arms", 60),
    "fsdp1": Check(fsdp1, "within 1 % of whole, resumed step equal", 90),
    "offload": Check(offload, "within 1 % of whole, resumed step equal", 120, needs_gpu=True),
    "lora": Check(lora, "peak <= 72 GB", 180),
    "ragged": Check(ragged, "held <= 1.15 x used, no retry", 60),
    "fragmentation": Check(fragmentation, "the same with growing segments", 90, needs_gpu=True),
    "copies": Check(copies, "uint8 pinned <= 3 ms", 20, needs_gpu=True),
    "generate": Check(generate, "batch 8 >= 3 x batch 1", 60),
    "tower": Check(tower, "connector, computed again: peak <= 3 GB", 40),
    "compiled": Check(compiled, "gain >= 5 %, or it stays off", 120),
    "decode": Check(decode, "1.3 x the 12 clips/s that 4 GPUs take", 90),
    "end_to_end": Check(end_to_end, "exit 0", 240),
}
"""In the order in which the first minutes show most."""


class _Clips(Dataset[Any]):
    """The same clip again and again, read as training reads it."""

    def __init__(self, path: Path, number: int) -> None:
        self.path, self.number = path, number

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, _: int) -> torch.Tensor:
        frames_TCHW = torch.from_numpy(read_clip(self.path, 16)).permute(0, 3, 1, 2)
        return torch.nn.functional.interpolate(frames_TCHW.float(), size=(384, 384), mode="bilinear").byte()


def _student(setting: Setting) -> tuple[regate.ScoredLM, torch.optim.Optimizer]:
    """A small student whose head and embeddings share their weights, on the CPU in float32, and its optimizer."""
    scored = regate.ScoredLM(_build(setting))
    return _prepared(scored), torch.optim.AdamW(scored.parameters(), lr=1e-4)


def _build(setting: Setting) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(
            vocab_size=min(setting.shape.vocabulary, 16384),
            hidden_size=setting.hidden,
            intermediate_size=4 * setting.hidden,
            num_hidden_layers=setting.layers,
            num_attention_heads=setting.hidden // 64,
            num_key_value_heads=setting.hidden // 256,
            tie_word_embeddings=True,
        )
    )
    return model


def _prepared(scored: regate.ScoredLM) -> regate.ScoredLM:
    model: Any = scored.model
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    return scored


def _sharded(setting: Setting, accelerator: Accelerator, devices: Devices) -> Sharded:
    return Sharded(
        accelerator,
        devices,
        lambda: _build(setting),
        lambda model: _prepared(regate.ScoredLM(model)),
        lambda scored: torch.optim.AdamW(scored.parameters(), lr=1e-4),
        lambda _: (),
    )


def _losses(setting: Setting, parallel: Replicated | Sharded, numbers: range) -> list[float]:
    """Losses of dense steps; each is of a batch of its own."""
    losses = []
    shape = replace(setting.shape, vocabulary=min(setting.shape.vocabulary, 16384))
    for number in numbers:
        batch = steps.batch_of(shape, number)
        decision = regate.DenseGate().decide(batch.layout, batch.sample_ids_B, step=0)
        inputs = {name: value.to(setting.device) for name, value in batch.inputs.items()}
        with parallel.micro_batch():
            logits_NV = parallel.model(predictor_BS=decision.predictor_rows, **inputs)
            loss = regate.token_loss(logits_NV, decision.targets_N.to(setting.device)).mean()
            parallel.backward(loss)
        parallel.update(1e-4, 1.0)
        losses.append(float(loss.detach()))
    return losses


def _wall(setting: Setting, once: Callable[[], Any]) -> float:
    """Seconds by the clock, with what the device has still to do."""
    began = time.monotonic()
    once()
    if setting.gpu:
        torch.cuda.synchronize()
    return time.monotonic() - began


def _half(setting: Setting) -> torch.dtype:
    return torch.bfloat16 if setting.gpu else torch.float32


def _median_time(setting: Setting, once: Callable[[], Any]) -> float:
    """Seconds: between device events on a GPU, of CPU time elsewhere."""
    times = []
    for _ in range(setting.rounds + 1):
        if setting.gpu:
            torch.cuda.synchronize()
            began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            began.record()
            once()
            ended.record()
            ended.synchronize()
            times.append(float(began.elapsed_time(ended)) / 1e3)
        else:
            start = time.process_time()
            once()
            times.append(time.process_time() - start)
    return statistics.median(times[1:])


def _start_peak(setting: Setting) -> int:
    """Bytes that are held now; the peak starts here."""
    if not setting.gpu:
        return 0
    torch.cuda.reset_peak_memory_stats()
    return int(torch.cuda.memory_allocated())


def _peak(setting: Setting, held: int) -> float:
    """GB above `held` since then; 0 without a GPU."""
    return (torch.cuda.max_memory_allocated() - held) / 1e9 if setting.gpu else 0.0


def run(check: Check, setting: Setting) -> dict[str, Any]:
    """A check's row. An error or the end of its time is its result."""

    def too_long(*_: Any) -> None:
        raise TimeoutError(f"took more than {check.limit_s} s")

    began = time.monotonic()
    if check.needs_gpu and not setting.gpu:
        return {"figure": "not run: no GPU", "demand": check.demand, "result": "NOT RUN", "seconds": 0.0}
    signal.signal(signal.SIGALRM, too_long)
    if setting.gpu:
        signal.alarm(check.limit_s)
    try:
        seen = check.run(setting)
    except Exception as error:  # noqa: BLE001 - whatever it is, the other checks run
        seen = Seen(f"{type(error).__name__}: {error}"[:200], False)
        failed = True
    else:
        failed = False
    finally:
        signal.alarm(0)
    gc.collect()
    if setting.gpu:
        torch.cuda.empty_cache()
    judged = failed or (setting.gpu and seen.passed is not None) or check.run is end_to_end
    result = ("PASS" if seen.passed else "FAIL") if judged else "INFO"
    row = {"figure": seen.figure, "demand": check.demand, "result": result, "seconds": time.monotonic() - began}
    return {**row, "values": seen.values}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(CHECKS), default=list(CHECKS))
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--out", type=Path, required=True, help="a folder")
    arguments = parser.parse_args()
    gpu = torch.cuda.is_available()
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "gpu.json"
    large = Setting(True, 3584, arguments.layers, 7, steps.Shape(1352, 280, 152064), path)
    setting = large if gpu else Setting(False, 256, 2, 2, steps.Shape(64, 48, 512), path)
    report: dict[str, Any] = {
        "schema": 1,
        "gpu": torch.cuda.get_device_name() if gpu else None,
        "sizes": {"hidden": setting.hidden, "layers": setting.layers, **asdict(setting.shape)},
        "provenance": provenance.collect(threads=torch.get_num_threads()),
        "checks": {},
    }
    if not gpu:
        print("No GPU here: toy sizes, which test this script and judge nothing.")
    for name in arguments.only:
        row = report["checks"][name] = run(CHECKS[name], setting)
        print(f"{name:<12} {row['figure']} | {row['demand']} | {row['result']} | {row['seconds']:.0f} s", flush=True)
        path.write_text(json.dumps(report, indent=1) + "\n")
    not_run = [name for name, row in report["checks"].items() if row["result"] == "NOT RUN"]
    if not_run:
        print(f"Not run, since they need a GPU: {', '.join(not_run)}.")
    sys.exit(any(row["result"] == "FAIL" for row in report["checks"].values()))


if __name__ == "__main__":
    main()
