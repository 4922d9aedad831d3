"""What the gate costs: its time beside a training step, and its stores at the size of a large training set.

    python benchmarks/gate_overhead.py                 # both parts; the stores take 1.3 GB on disk while it runs
    python benchmarks/gate_overhead.py --part step
    python benchmarks/gate_overhead.py --part stores --samples 2600000 --targets 120

Prints one JSON object a part. Times are medians.

Legend: B rows, S expanded length.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

import regate
from regate.candidates import candidates_of
from regate.compaction import compact

if TYPE_CHECKING:
    from collections.abc import Callable

VOCABULARY = 4096


def batch_of(first_id: int, *, rows: int, length: int, visual: int, prompt: int, targets: int) -> Any:
    """Token ids, layout and sample ids of rows like VideoLLaMA2's: pictures, a question, an answer."""
    draw = torch.Generator().manual_seed(first_id)
    ids_BS = torch.randint(3, VOCABULARY, (rows, length), generator=draw)
    used_B = visual + prompt + torch.randint(targets // 2, targets + targets // 2, (rows,), generator=draw)
    place_S = torch.arange(length)
    mask_BS = (place_S < used_B.clamp(max=length)[:, None]).long()
    labels_BS = torch.where((place_S >= visual + prompt) & (mask_BS == 1), ids_BS, -100)
    visual_BS = (place_S < visual).expand(rows, length)
    layout = regate.layout_from_labels(labels_BS, mask_BS, visual_BS=visual_BS)
    return ids_BS, mask_BS, layout, torch.arange(first_id, first_id + rows)


def store_of(path: Path, batches: list[Any]) -> regate.ReferenceStore:
    keys = [regate.store_keys(layout) for _, _, layout, _ in batches]
    ids = [int(sample) for *_, sample_ids_B in batches for sample in sample_ids_B]
    counts = [count for count_B, _ in keys for count in count_B]
    checksums = [checksum for _, checksum_B in keys for checksum in checksum_B]
    writer = regate.ReferenceWriter.create(
        path, sample_ids=ids, num_targets=counts, checksums=checksums, fingerprint={"benchmark": 1}
    )
    writer.write(ids, [torch.rand(count) for count in counts])
    return writer.finish()


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def anonymous_memory() -> int | None:
    """Bytes of this process that are no file's pages (Linux); the stores' own pages can be taken back at any time."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon")), None)


def step_part(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of decide, compaction and observe, and of the sparse step that they belong to."""
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=VOCABULARY,
            hidden_size=options.hidden,
            intermediate_size=4 * options.hidden,
            num_hidden_layers=options.layers,
            num_attention_heads=8,
            num_key_value_heads=2,
            tie_word_embeddings=False,
        )
    ).to(device)
    shape = {"rows": 4, "length": 2048, "visual": 1352, "prompt": 60, "targets": 280}
    batches = [batch_of(10 * place, **shape) for place in range(options.steps + 1)]
    store = store_of(folder / "step", batches)
    config = regate.GateConfig(warmup_steps=0, dense_steps=0)
    difficulty = regate.DifficultyStore.for_gate(folder / "difficulty", config, reference=store)
    gate, elide, student = regate.Gate(config, store, difficulty), regate.attach(model), regate.ScoredLM(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    parts: dict[str, list[float]] = {"decide": [], "compaction": [], "observe": [], "step": []}
    for step, (ids_BS, mask_BS, layout, sample_ids_B) in enumerate(batches):
        start = time.perf_counter()
        decide, decision = timed(lambda: gate.decide(layout, sample_ids_B, step=step))  # noqa: B023
        compaction, _ = timed(lambda: compact(decision.active_BS))  # noqa: B023
        with elide(decision):
            logits_NV = student(
                predictor_BS=decision.predictor_BS, input_ids=ids_BS.to(device), attention_mask=mask_BS.to(device)
            )
        loss_N = regate.token_loss(logits_NV, decision.targets_N.to(device))
        loss_N.mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        observe, _ = timed(lambda: gate.observe(decision, loss_N))  # noqa: B023
        for name, seconds in (("decide", decide), ("compaction", compaction), ("observe", observe)):
            parts[name].append(seconds)
        parts["step"].append(time.perf_counter() - start)
    median = {name: statistics.median(seconds[1:]) for name, seconds in parts.items()}
    gating = median["decide"] + median["compaction"] + median["observe"]
    return {
        "part": "step",
        "device": str(device),
        "threads": torch.get_num_threads(),
        "parameters": sum(value.numel() for value in model.parameters()),
        **shape,
        **{f"{name}_ms": round(1e3 * seconds, 3) for name, seconds in median.items()},
        "gate_part_of_step": round(gating / median["step"], 5),
    }


def stores_part(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Size, memory and speed of the two stores at full size."""
    samples, targets = options.samples, options.targets
    labels_BS = torch.full((32, targets + 8), -100)
    labels_BS[:, 8:] = torch.arange(targets)
    layout = regate.layout_from_labels(labels_BS, torch.ones_like(labels_BS))
    checksum = regate.store_keys(layout)[1][0]
    ids_M = np.arange(samples, dtype=np.int64) * 7
    created, writer = timed(
        lambda: regate.ReferenceWriter.create(
            folder / "reference",
            sample_ids=ids_M,
            num_targets=np.full(samples, targets),
            checksums=np.full(samples, checksum, dtype=np.uint32),
            fingerprint={"benchmark": 2},
        )
    )
    writer.losses[:] = 1.0
    writer.done_M[:] = 1
    sealed, _ = timed(writer.finish)
    opened, store = timed(lambda: regate.ReferenceStore.open(folder / "reference"))
    difficulty = regate.DifficultyStore.create(
        folder / "difficulty-large", sample_ids=ids_M, num_targets=np.full(samples, targets)
    )  # fmt: skip
    draw = np.random.default_rng(0)
    chosen = [torch.from_numpy(ids_M[draw.integers(0, samples, 32)]) for _ in range(200)]
    found = candidates_of(layout)
    reads = [timed(lambda: store.losses(picked, layout))[0] for picked in chosen]  # noqa: B023
    looks = [timed(lambda: difficulty.values(found, picked))[0] for picked in chosen]  # noqa: B023
    slots = [difficulty.index.slots(found, picked, difficulty.path) for picked in chosen]
    seen = np.ones(32 * targets, dtype=bool)
    losses = np.ones(32 * targets, dtype=np.float32)
    appends = [timed(lambda: difficulty.append(step, one, seen, losses))[0] for step, one in enumerate(slots)]  # noqa: B023
    folded, _ = timed(difficulty.fold)
    return {
        "part": "stores",
        "samples": samples,
        "targets_each": targets,
        "reference_bytes": sum(file.stat().st_size for file in (folder / "reference").iterdir()),
        "difficulty_bytes": (folder / "difficulty-large" / "m.e1.npy").stat().st_size,
        "create_s": round(created, 2),
        "seal_s": round(sealed, 2),
        "open_s": round(opened, 2),
        "read_reference_32_ms": round(1e3 * statistics.median(reads), 3),
        "read_reference_32_p95_ms": round(1e3 * statistics.quantiles(reads, n=20)[-1], 3),
        "read_difficulty_32_ms": round(1e3 * statistics.median(looks), 3),
        "append_32_ms": round(1e3 * statistics.median(appends), 3),
        "fold_200_batches_s": round(folded, 2),
        "anonymous_memory_bytes": anonymous_memory(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["step", "stores", "both"], default="both")
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--samples", type=int, default=2_600_000)
    parser.add_argument("--targets", type=int, default=120)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        if options.part in ("step", "both"):
            print(json.dumps(step_part(Path(name), options)), flush=True)
        if options.part in ("stores", "both"):
            print(json.dumps(stores_part(Path(name), options)), flush=True)


if __name__ == "__main__":
    main()
