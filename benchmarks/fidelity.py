"""What sparse steps do to the loss and its gradient on a real pre-trained decoder, against the exact ones.

    python benchmarks/fidelity.py FOLDER                         # a causal LM as transformers reads it
    python benchmarks/fidelity.py FOLDER --gguf FILE             # a GGUF file in that folder
    python benchmarks/fidelity.py FOLDER --out results/benchmarks

Rows are prose of this project's own documentation: a prompt, then targets, of which those with the highest loss of
the model itself are selected, half of them or what a ramp of the keep ratio ends at. Every variant gets the same
rows; what it computes differs. Exact is the same selection with nothing elided. It has no seeds and proves nothing
about a training; it shows what a decoder of a few layers hides. Mean of the batches. The documentation changes: the
digest of the rows' tokens stands beside the figures, which other rows give otherwise.

Text has no pictures to elide, and no small multimodal model with real weights is in a package registry: what
`gate.visual` does to a gradient is not in this table.

Legend: B rows, S length, N selected targets, V vocabulary.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import cosine_similarity, cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

import regate
from harness.models.decoder_flops import LayerSpan, step_flops
from harness.models.flops import decoder_shape
from regate.gate import ALIGN, count_tokens
from regate.top_k import top_k
from regate.types import LayerKeep, Level

if TYPE_CHECKING:
    from torch import Tensor

    from regate.config import Align

COLUMNS = ("loss", "kl", "top1", "cosine", "norm_ratio", "flops")
PROSE = ("README.md", "CONTRIBUTING.md", "docs/interpretations.md", "docs/library.md", "docs/devices.md")


@dataclass(frozen=True)
class Variant:
    """What a sparse step computes. `leaves` and `deep` are parts of the layers; None for no layer.

    Attributes:
        keep: the part of the targets that is selected.
        below: parts of the layers, from the bottom up, and the part of the targets that the layers below each keep.
        layer_keep: the part of the positions that each layer but the first and the last computes.
    """

    leaves: float | None = None
    deep: float | None = None
    align: Align = "predictor"
    all_targets: bool = False
    keep: float = 0.5
    below: tuple[tuple[float, float], ...] = ()
    layer_keep: float | None = None

    @property
    def exact(self) -> bool:
        """Nothing is elided."""
        return self.leaves is None and self.deep is None and not self.below and self.layer_keep is None


VARIANTS = {
    "exact: loss on the selected, nothing elided": Variant(),
    "ReGATE": Variant(leaves=0.0),
    "ReGATE, union alignment": Variant(leaves=0.0, align="union"),
    "leaves above 1/4": Variant(leaves=0.25),
    "leaves above 1/2": Variant(leaves=0.5),
    "leaves above 3/4": Variant(leaves=0.75),
    "leaves above 1/2, union alignment": Variant(leaves=0.5, align="union"),
    "deep above 1/2": Variant(deep=0.5),
    "deep above 2/3": Variant(deep=2 / 3),
    "deep above 3/4": Variant(deep=0.75),
    "deep above 9/10": Variant(deep=0.9),
    "leaves above 1/2, deep above 3/4": Variant(leaves=0.5, deep=0.75),
    "3/4 of the targets below 1/2, half above": Variant(leaves=0.5, below=((0.5, 0.75),)),
    "all below 1/4, 3/4 below 1/2, half above": Variant(leaves=0.5, below=((0.25, 1.0), (0.5, 0.75))),
    "each layer computes a random half of the positions": Variant(layer_keep=0.5),
    "a quarter selected: exact": Variant(keep=0.25),
    "a quarter selected: ReGATE": Variant(leaves=0.0, keep=0.25),
    "3/4 selected: exact": Variant(keep=0.75),
    "3/4 selected: ReGATE": Variant(leaves=0.0, keep=0.75),
    "baseline: loss on all targets": Variant(all_targets=True),
}


def rows_of_prose(tokenizer: Any, rows: int, length: int) -> Tensor:
    """int64 [rows, length] out of the paragraphs that are mostly letters."""
    root = Path(__file__).parent.parent
    texts = [(root / name).read_text(encoding="utf-8") for name in PROSE]
    plain = [" ".join(part.split()) for text in texts for part in re.split(r"\n\s*\n", text)]
    letters = [sum(c.isalpha() or c == " " for c in part) for part in plain]
    prose = [part for part, count in zip(plain, letters, strict=True) if len(part) > 200 and count > 0.88 * len(part)]
    ids = tokenizer(" ".join(prose))["input_ids"]
    if len(ids) < rows * length:
        raise SystemExit(f"the prose has {len(ids)} tokens, and {rows} rows of {length} were asked for")
    return torch.tensor(ids[: rows * length]).view(rows, length)


def decide(model: Any, ids_BS: Tensor, prompt: int, variant: Variant) -> regate.Decision:
    """The targets with the highest loss, and what the variant computes for them."""
    labels_BS = torch.where(torch.arange(ids_BS.shape[1]) >= prompt, ids_BS, -100)
    layout = regate.layout_from_labels(labels_BS, torch.ones_like(ids_BS))
    with torch.no_grad():
        logits_BSV = model(input_ids=ids_BS, use_cache=False).logits
    loss_BS = torch.zeros(ids_BS.shape)
    loss_BS[:, 1:] = cross_entropy(logits_BSV[:, :-1].transpose(1, 2), ids_BS[:, 1:], reduction="none")
    chosen_BS = layout.target_BS if variant.all_targets else top_k(loss_BS, layout.target_BS, variant.keep)
    valid_BS = active_BS = layout.valid_BS
    levels: tuple[Level, ...] = ()

    def active_for(kept_BS: Tensor) -> Tensor:
        return valid_BS & (~layout.target_BS | ALIGN[variant.align](kept_BS))

    if variant.leaves is not None:
        active_BS = active_for(chosen_BS)
        levels = (Level(0, valid_BS), Level(variant.leaves, active_BS)) if variant.leaves else ()
    if variant.below:
        kept = [active_for(top_k(loss_BS, layout.target_BS, keep)) for _, keep in variant.below]
        starts = [0, *(layer for layer, _ in variant.below)]
        levels = tuple(Level(start, mask_BS) for start, mask_BS in zip(starts, [*kept, active_BS], strict=True))
    counts = count_tokens(layout, active_BS, chosen_BS)
    decision = regate.Decision(active_BS, chosen_BS, torch.arange(len(ids_BS)), layout, variant.keep, counts, 0)
    single = None if variant.layer_keep is None else LayerKeep(variant.layer_keep, 0)
    return replace(decision, levels=levels, deep=variant.deep, layer_keep=single)


def step(
    model: Any, elide: regate.Elision, ids_BS: Tensor, decision: regate.Decision
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean loss, log-probabilities [N, V] and the gradient of all parameters."""
    model.zero_grad(set_to_none=True)
    with elide(decision):
        logits_NV = regate.ScoredLM(model)(
            predictor_BS=decision.predictor_BS, input_ids=ids_BS, attention_mask=torch.ones_like(ids_BS)
        )
    loss = regate.token_loss(logits_NV, decision.targets_N).mean()
    torch.autograd.backward(loss)
    gradient = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    return loss.detach(), logits_NV.detach().log_softmax(-1), gradient


def measure(model: Any, ids_BS: Tensor, prompt: int) -> dict[str, dict[str, float]]:
    """Figures of one batch by variant."""
    shape = decoder_shape(model.config)
    elide = regate.attach(model, rows="packed")
    results: dict[str, dict[str, float]] = {}
    exact_by_keep: dict[float, tuple[Tensor, Tensor, Tensor]] = {}
    dense = step_flops(shape, [ids_BS.shape[1]] * len(ids_BS), (ids_BS.shape[1] - prompt) * len(ids_BS))
    for name, variant in VARIANTS.items():
        decision = decide(model, ids_BS, prompt, variant)
        loss, log_p_NV, gradient = step(model, elide, ids_BS, decision)
        if variant.exact and not variant.all_targets:
            exact_by_keep[variant.keep] = (loss, log_p_NV, gradient)
        exact = exact_by_keep[variant.keep]
        cosine = cosine_similarity(gradient.double(), exact[2].double(), dim=0)
        spans = [LayerSpan(*astuple(work)) for work in elide.work(decision)]
        rows = decision.active_BS.sum(dim=1).tolist()
        results[name] = {
            "cosine": float(cosine),
            "norm_ratio": float(gradient.double().norm() / exact[2].double().norm()),
            "flops": step_flops(shape, rows, decision.counts.scored, spans=spans) / dense,
        }
        if not variant.all_targets:
            divergence = (exact[1].exp() * (exact[1] - log_p_NV)).sum(-1).mean()
            agreement = (exact[1].argmax(-1) == log_p_NV.argmax(-1)).float().mean()
            results[name] |= {"loss": float(loss), "kl": float(divergence), "top1": float(agreement)}
    elide.remove()
    return results


def table(document: dict[str, Any]) -> str:
    setting = document["setting"]
    lines = [
        "# Fidelity of sparse steps",
        "",
        f"Made by `python benchmarks/fidelity.py`: {document['model']}, {setting['layers']} layers, float32; "
        f"{setting['batches']} batches of {setting['rows']} rows of {setting['length']} tokens, of which "
        f"{setting['prompt']} are the prompt. Loss, KL divergence and agreement are those on the selected "
        "targets, half of them where no other part is named; cosine and norm are of the gradient of all parameters, "
        "beside the exact one of the same selection; FLOPs are those of the decoder and the head, beside a dense "
        "step of the baseline. One model and one text, the documentation of this project as it was (tokens "
        f"{setting['tokens'][:12]}): it says what depth does to a variant, not what a training with it reaches. "
        "Text has no pictures, and no small multimodal model with real weights is in a package registry: leaving out "
        "pictures is not in this table.",
        "",
        "| variant | loss | KL | top-1 agreement | gradient cosine | gradient norm | FLOPs |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in document["variants"].items():
        cells = [f"{row[key]:.3f}" if key in row else "" for key in COLUMNS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gguf", help="a GGUF file in the folder (needs the package gguf)")
    parser.add_argument("--name", help="of the model in the table; the folder's without")
    parser.add_argument("--batches", type=int, default=2)
    parser.add_argument("--rows", type=int, default=3)
    parser.add_argument("--length", type=int, default=160)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--out", type=Path, help="folder for fidelity.json and fidelity.md; printed without")
    arguments = parser.parse_args()
    more = {"gguf_file": arguments.gguf} if arguments.gguf else {}
    tokenizer = AutoTokenizer.from_pretrained(arguments.folder, trust_remote_code=False, **more)
    model: Any = AutoModelForCausalLM.from_pretrained(
        arguments.folder, dtype=torch.float32, trust_remote_code=False, **more
    )
    ids = rows_of_prose(tokenizer, arguments.batches * arguments.rows, arguments.length)
    batches = [measure(model, ids_BS, arguments.prompt) for ids_BS in torch.split(ids, arguments.rows)]
    variants = {
        name: {key: sum(batch[name][key] for batch in batches) / len(batches) for key in row}
        for name, row in batches[0].items()
    }
    setting = {name: getattr(arguments, name) for name in ("batches", "rows", "length", "prompt")}
    setting |= {"layers": model.config.num_hidden_layers, "tokens": hashlib.sha256(ids.numpy().tobytes()).hexdigest()}
    name = arguments.name or arguments.folder.name
    document = {"schema": 1, "model": name, "setting": setting, "variants": variants}
    if arguments.out is None:
        print(table(document))
        return
    (arguments.out / "fidelity.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    (arguments.out / "fidelity.md").write_text(table(document), encoding="utf-8")


if __name__ == "__main__":
    main()
