"""What torch finds and what really runs here, as one line of JSON: `python -m harness.cli.probe`.

A process of its own, because a kernel that does not fit its card may end the process that tries it.

Legend: H heads, S positions, D head size.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa

from regate.attention import KERNELS, PackedRows

if TYPE_CHECKING:
    from collections.abc import Callable

H, D = 4, 64
LENGTHS: Final = (48, 16)
"""Rows of the packed batch that every kernel computes."""
TOLERANCE: Final = 0.02
"""Largest difference from float32, in the half precision of GPUs."""


def probe() -> dict[str, Any]:
    """Versions, and for each attention kernel `runs` or what it said."""
    cuda = torch.cuda.is_available()
    return {
        "torch": torch.__version__,
        "cuda": torch.version.cuda if cuda else None,
        "gpus": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())] if cuda else [],
        "nccl": _nccl(),
        "bfloat16": torch.cuda.is_bf16_supported() if cuda else True,
        "kernels": kernels(torch.device("cuda" if cuda else "cpu")),
    }


def _nccl() -> str | None:
    if not (torch.cuda.is_available() and torch.distributed.is_available() and torch.distributed.is_nccl_available()):
        return None
    return ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]


def kernels(device: torch.device) -> dict[str, str]:
    """Each kernel computes two packed rows, forward and backward, and is held against float32."""
    tries: dict[str, Callable[..., torch.Tensor]] = {name: _packed(name) for name in KERNELS}
    tries["flex_attention"] = _flex
    return {name: _outcome(attend, device) for name, attend in tries.items()}


def _outcome(attend: Callable[..., torch.Tensor], device: torch.device) -> str:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    generator = torch.Generator().manual_seed(0)
    total = sum(LENGTHS)
    query, key, value = (torch.randn(1, H, total, D, generator=generator) for _ in range(3))
    inputs = [part.clone().to(device, dtype).requires_grad_() for part in (query, key, value)]
    try:
        out_1SHD = attend(*inputs)
        torch.autograd.backward(out_1SHD.float().square().sum())
    except Exception as error:  # noqa: BLE001 - whatever a kernel says is the answer
        words = str(error).split(". ")[0].splitlines()
        return f"{type(error).__name__}: {words[0] if words else ''}"[:80]
    away = float((out_1SHD.detach().float().cpu() - _expected(query, key, value)).abs().max())
    gradients = all(part.grad is not None and bool(part.grad.isfinite().all()) for part in inputs)
    return "runs" if away < TOLERANCE and gradients else f"computes something else: {away:.2g} away"


def _expected(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """[1, S, H, D]: each row by itself, in float32 on the CPU."""
    rows, start = [], 0
    for length in LENGTHS:
        row = slice(start, start + length)
        start += length
        rows.append(sdpa(query[:, :, row], key[:, :, row], value[:, :, row], is_causal=True).transpose(1, 2))
    return torch.cat(rows, dim=1)


def _packed(name: str) -> Callable[..., torch.Tensor]:
    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        bounds = torch.tensor([0, LENGTHS[0], sum(LENGTHS)], dtype=torch.int32, device=query.device)
        arguments = {"cu_seq_lens_q": bounds, "max_length_q": max(LENGTHS)}
        return KERNELS[name](query, key, value, PackedRows(name, LENGTHS), arguments)

    return attend


def _flex(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    row = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS)).to(query.device)

    def sees(batch: Any, head: Any, q: Any, k: Any) -> Any:
        return (q >= k) & (row[q] == row[k])

    mask = create_block_mask(sees, None, None, sum(LENGTHS), sum(LENGTHS), device=query.device)
    attend: Any = torch.compile(flex_attention) if query.device.type == "cuda" else flex_attention
    out: torch.Tensor = attend(query, key, value, block_mask=mask)
    return out.transpose(1, 2)


if __name__ == "__main__":
    print(json.dumps(probe()))  # noqa: T201 - the answer
