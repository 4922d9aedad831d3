"""The devices of a run: how they compute, and how much memory they held."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch
import torch.distributed as dist
from accelerate import Accelerator

from harness.common.errors import EnvironmentProblem, RecipeError

if TYPE_CHECKING:
    from torch import nn

    from harness.config.recipe import TrainRecipe

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_HALF: Final = {"bfloat16": torch.bfloat16, "float16": torch.float16}
"""By the name that recipes have for them."""


_THREADS: Final = torch.get_num_threads()
"""What torch chose for this machine."""


def use_threads(threads: int | None) -> None:
    """Compute with so many threads on the CPU; None takes what torch chose when it was loaded."""
    torch.set_num_threads(_THREADS if threads is None else threads)


def computes_bfloat16() -> bool:
    """Whether this machine's GPU has bfloat16 arithmetic; on a CPU it is emulated and slow."""
    return bool(torch.cuda.is_available() and torch.cuda.is_bf16_supported())


def compute_dtype(precision: str) -> torch.dtype:
    """Of weights that are not trained: what a recipe's or an evaluation's `precision` computes in on this machine."""
    if precision == "auto":
        return torch.bfloat16 if computes_bfloat16() else torch.float32
    return _HALF.get(precision, torch.float32)


def evaluated_dtypes(
    asked: str, precision: str, device: torch.device
) -> tuple[torch.dtype, torch.dtype | None]:
    """What the weights of a kept model are held in while it is scored, and the autocast type of its passes.

    Args:
        asked: `evaluate.dtype` of a recipe.
        precision: its `train.precision`: evaluation computes as training does.

    Returns:
        The weights' type, and None for passes in the type of the weights.

    Raises:
        EnvironmentProblem: the GPU has no bfloat16 arithmetic.
    """
    on_gpu = device.type == "cuda"
    capable = on_gpu and torch.cuda.is_bf16_supported()
    if asked == "bfloat16" and on_gpu and not capable:
        raise EnvironmentProblem(
            f"evaluate.dtype is bfloat16, and {torch.cuda.get_device_name(device)} has no bfloat16 arithmetic",
            hint="leave evaluate.dtype out",
        )
    computed = _HALF.get(precision)
    if asked == "bfloat16" or (precision == "auto" and capable):
        computed = torch.bfloat16
    rounded = asked == "bfloat16" or (asked == "auto" and capable and computed is torch.bfloat16)
    return torch.bfloat16 if rounded else torch.float32, computed


def check_evaluated_dtype(asked: str) -> None:
    """Raises EnvironmentProblem where `evaluated_dtypes` will, before days are trained."""
    if torch.cuda.is_available():
        evaluated_dtypes(asked, "auto", torch.device("cuda", 0))


def hold_in(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Round a model's floating-point parameters to a type. Its buffers stay: among them are the frequencies of
    positions, whose error grows with the length of a text."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    return model


def compute_device(model: nn.Module) -> torch.device:
    """Where a model computes: what it says of itself (`computes_on`), since its weights may lie elsewhere, or where
    they are."""
    stated: torch.device | None = getattr(model, "computes_on", None)
    return next(model.parameters()).device if stated is None else stated


def autocast_forward(model: nn.Module, accelerator: Accelerator) -> None:
    """Let `model` compute in the precision that accelerate was given; float32 changes nothing. Its outputs stay in
    the type that they get there."""
    if accelerator.mixed_precision != "no":
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[accelerator.mixed_precision]
        model.forward = torch.autocast(accelerator.device.type, dtype=dtype)(model.forward)


def reset_peak(device: torch.device) -> None:
    """Start a new peak at what is held now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _CLEAR.exists():
        # Writing 5 resets the peak resident set size (VmHWM), see proc(5).
        _CLEAR.write_text("5")


def memory_bytes(device: torch.device) -> int | None:
    """Of the GPU, in all; None on the CPU."""
    return int(torch.cuda.get_device_properties(device).total_memory) if device.type == "cuda" else None


def peak_bytes(device: torch.device) -> int | None:
    """Bytes: allocated on the GPU, or resident in this process (code and libraries included). None where the
    operating system does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if not _STATUS.exists():
        return None
    for line in _STATUS.read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None


def accelerator(recipe: TrainRecipe) -> Accelerator:
    """accelerate's view of this process, with the recipe's precision and accumulation.

    Raises:
        RecipeError: the global batch cannot be split evenly over the processes.
    """
    chosen = recipe.precision if recipe.precision != "auto" else ("bfloat16" if computes_bfloat16() else "float32")
    precision = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}[chosen]
    # accelerate takes part in a group of CPU processes only where it is told that it computes on the CPU.
    configured = Accelerator(mixed_precision=precision, cpu=dist.is_initialized() and not torch.cuda.is_available())
    per_pass = recipe.micro_batch * configured.num_processes
    if recipe.global_batch % per_pass:
        raise RecipeError(
            f"train.global_batch {recipe.global_batch} is not a multiple of micro_batch x processes = {per_pass}",
            hint="choose micro_batch so that it divides global_batch / processes",
        )
    configured.gradient_accumulation_steps = recipe.global_batch // per_pass
    return configured
