"""Tiny models, batches and stores for the tests of `regate`.

Legend: B rows, S expanded length, D hidden size.
"""

from __future__ import annotations

import types
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import transformers

import regate
from regate.types import IGNORE

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

VOCAB = 61
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "initializer_range": 0.3,  # attention that is far from uniform
}


def lm(family: str = "Qwen2", *, double: bool = True, attention: str = "sdpa", **config: Any) -> Any:
    """A randomly started causal LM in train mode; float64 through and through if `double`."""
    torch.manual_seed(7)
    made = getattr(transformers, f"{family}Config")(**{**SIZES, **config})
    model = getattr(transformers, f"{family}ForCausalLM")._from_config(made, attn_implementation=attention)
    for name, value in model.named_parameters():  # biases and norms start at 0 and 1: make them matter
        if value.dim() == 1:
            torch.nn.init.normal_(value, mean=1.0 if "norm" in name else 0.0, std=0.2)
    return in_double(model).train() if double else model.train()


def in_double(model: nn.Module) -> nn.Module:
    """The model in float64, its RMS norms included: transformers computes those in float32."""
    model.double()
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = types.MethodType(_rms_norm, module)
    return model


def _rms_norm(norm: Any, hidden: Tensor) -> Tensor:
    eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", 1e-6))
    return norm.weight * hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + eps)


@dataclass
class Rows:
    """A batch of token rows. Left-padded, right-padded and unpadded rows may stand together."""

    sample_ids_B: Tensor
    input_ids_BS: Tensor
    mask_BS: Tensor
    layout: regate.Layout

    @property
    def inputs(self) -> dict[str, Tensor]:
        return {"input_ids": self.input_ids_BS, "attention_mask": self.mask_BS}


def rows(
    *, batch: int = 3, length: int = 20, prompt: int = 6, visual: int = 0, pad: str = "both", seed: int = 0
) -> Rows:
    """`prompt` tokens (the first `visual` of them after the first visual), then targets, then padding."""
    draw = torch.Generator().manual_seed(seed)
    ids_BS = torch.randint(3, VOCAB, (batch, length), generator=draw)
    mask_BS = torch.ones(batch, length, dtype=torch.int64)
    start_B = torch.zeros(batch, dtype=torch.int64)
    for row in range(batch):
        if pad in ("right", "both") and row % 3 == 1:
            mask_BS[row, length - 3 :] = 0
        if pad in ("left", "both") and row % 3 == 2:
            mask_BS[row, :4] = 0
            start_B[row] = 4
    place_BS = torch.arange(length).expand(batch, length) - start_B[:, None]
    labels_BS = torch.where((place_BS >= prompt) & (mask_BS == 1), ids_BS, IGNORE)
    visual_BS = (place_BS >= 1) & (place_BS < 1 + visual) & (mask_BS == 1)
    ids_BS = torch.where(mask_BS == 1, ids_BS, 0)
    layout = regate.layout_from_labels(labels_BS, mask_BS, visual_BS=visual_BS, input_ids_BS=ids_BS)
    sample_ids_B = torch.arange(batch) * 1000 + 17 + seed * 100_000
    return Rows(sample_ids_B, ids_BS, mask_BS, layout)


def select(data: Rows, targets_BS: Tensor, *, align: str = "predictor", keep_ratio: float = 0.5) -> regate.Decision:
    """The decision that scores exactly `targets_BS`."""
    from regate.gate import ALIGN, count_tokens

    layout = data.layout
    targets_BS = targets_BS & layout.target_BS
    active_BS = layout.valid_BS & (~layout.target_BS | ALIGN[align](targets_BS))
    counts = count_tokens(layout, active_BS, targets_BS)
    return regate.Decision(active_BS, targets_BS, data.sample_ids_B, layout, keep_ratio, counts, 0)


def reference_store(
    path: Path, data: list[Rows], candidates: str = "targets", seed: int = 3
) -> regate.ReferenceStore:
    """A store of random losses for the rows of some batches."""
    ids, counts, checksums = [], [], []
    for batch in data:
        number, checksum = regate.store_keys(batch.layout, candidates)
        ids += batch.sample_ids_B.tolist()
        counts += number
        checksums += checksum
    writer = regate.ReferenceWriter.create(
        path, sample_ids=ids, num_targets=counts, checksums=checksums, fingerprint={"teacher": "random", "seed": seed}
    )
    draw = torch.Generator().manual_seed(seed)
    writer.write(ids, [torch.rand(count, generator=draw) * 4 for count in counts])
    return writer.finish()
