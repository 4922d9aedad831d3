"""Where the parts of a transformers-native multimodal model are, and what of them is trained.

Legend: B rows, S expanded length, V vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutput

from harness.common.errors import EnvironmentProblem

if TYPE_CHECKING:
    from harness.config.model import HFSettings, LoraRecipe

PartName = Literal["tower", "projector", "decoder"]
PARTS: Final[tuple[PartName, ...]] = ("tower", "projector", "decoder")
_NOT_DECAYED: Final = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")
_CAPTURES: Final = "_output_capturing_hooks_installed"
"""transformers' mark of a module whose outputs it records by hooks."""
_MERGER: Final = "merger"
"""In the name of a module within a tower that makes the decoder's visual tokens of its output."""


@dataclass(frozen=True, slots=True)
class Parts:
    """A model's parameters by part, by their names.

    Attributes:
        loose: those of the projector that are no module's weights, such as a learned line break.
    """

    tower: Mapping[str, nn.Parameter]
    projector: Mapping[str, nn.Parameter]
    decoder: Mapping[str, nn.Parameter]
    loose: tuple[str, ...]

    def of(self, part: PartName) -> Mapping[str, nn.Parameter]:
        parameters: Mapping[str, nn.Parameter] = getattr(self, part)
        return parameters


def parts_of(model: Any) -> Parts:
    """Decoder, head and tower by the accessors of transformers; the projector is every other parameter, and the
    mergers within the tower.

    Raises:
        EnvironmentProblem: the model has no decoder or tower of its own, or parameters that belong to no part.
    """
    name = type(model).__name__
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    tower = model.get_encoder(modality="image")
    if not isinstance(decoder, nn.Module) or decoder is model or not isinstance(head, nn.Module):
        raise EnvironmentProblem(f"{name}: no decoder with an output embedding can be found in it")
    if not isinstance(tower, nn.Module) or tower in (model, model.base_model):
        raise EnvironmentProblem(f"{name}: no vision tower can be found in it")
    mergers = [module for inner, module in tower.named_modules() if _MERGER in inner.split(".")[-1]]
    merged = {id(parameter) for module in mergers for parameter in module.parameters()}
    of_decoder = {id(parameter) for module in (decoder, head) for parameter in module.parameters()}
    of_tower = {id(parameter) for parameter in tower.parameters()} - merged
    of_sound = _other_encoders(model)
    groups: dict[str, dict[str, nn.Parameter]] = {part: {} for part in PARTS}
    strange: list[str] = []
    for key, parameter in model.named_parameters():
        if id(parameter) in of_sound:
            strange.append(key)
            continue
        part = "decoder" if id(parameter) in of_decoder else "tower" if id(parameter) in of_tower else "projector"
        groups[part][key] = parameter
    if strange:
        raise EnvironmentProblem(
            f"{name}: {len(strange)} parameters belong to no part (tower, projector, decoder), first {strange[0]}",
            hint="models that hear are not trained here",
        )
    base = {id(parameter) for parameter in model.base_model.parameters(recurse=False)}
    loose = tuple(key for key, parameter in groups["projector"].items() if id(parameter) in base)
    return Parts(groups["tower"], groups["projector"], groups["decoder"], loose)


def decayed_names(model: nn.Module) -> frozenset[str]:
    """Names of the parameters that transformers' Trainer decays: neither biases nor those of norms. So InternVL's
    layer scales and a tower's class embedding are, though they are vectors."""
    norms = [f"{name}." for name, module in model.named_modules() if isinstance(module, nn.LayerNorm)]
    return frozenset(
        name
        for name, _ in model.named_parameters()
        if not name.startswith(tuple(norms)) and not _NOT_DECAYED.search(name.lower())
    )


def _other_encoders(model: Any) -> set[int]:
    encoder = model.get_encoder(modality="audio")
    if encoder in (model, model.base_model) or not isinstance(encoder, nn.Module):
        return set()
    return {id(parameter) for parameter in encoder.parameters()}


def prepare_training(model: Any, settings: HFSettings, white: Mapping[str, Tensor]) -> list[str]:
    """Set what is trained, put LoRA in, and keep the vision side in the graph of text-only rows.

    Args:
        white: arguments of `get_image_features` for a white picture.

    Returns:
        Names of parameters of the vision side that no picture reaches; they are not trained.
    """
    if settings.lora is not None:
        add_lora(model, settings.lora)
    parts = parts_of(model)
    for part in PARTS:
        asked = getattr(settings, part).train
        for name, parameter in parts.of(part).items():
            lora = settings.lora is not None and part == "decoder"
            parameter.requires_grad_(asked and (not lora or "lora_" in name))
    unread = _unread(model, parts, white)
    for name in unread:
        model.get_parameter(name).requires_grad_(False)
    if any(p.requires_grad for part in (parts.tower, parts.projector) for p in part.values()):
        model.base_model.register_forward_hook(WhitePicture(dict(white), parts.loose), with_kwargs=True)
    return unread


def add_lora(model: Any, lora: LoraRecipe) -> None:
    """Adapters on every linear layer of the decoder's layers, in place; torch's random state decides their start."""
    decoder = model.get_decoder()
    kinds = sorted({name.split(".")[-1] for name, module in decoder.named_modules() if isinstance(module, nn.Linear)})
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=kinds)
    inject_adapter_in_model(config, decoder)


def _unread(model: Any, parts: Parts, white: Mapping[str, Tensor]) -> list[str]:
    """Trained parameters of the vision side that a picture's features do not depend on: layers behind the one that
    the projector reads."""
    trained = {
        name: p
        for part in (parts.tower, parts.projector)
        for name, p in part.items()
        if p.requires_grad and name not in parts.loose
    }
    if not trained:
        return []
    with _hooks_kept(model):
        features = total(model.base_model.get_image_features(**_on(model, white)))
    grads = torch.autograd.grad(features, list(trained.values()), allow_unused=True)
    return [name for name, grad in zip(trained, grads, strict=True) if grad is None]


@contextmanager
def _hooks_kept(model: nn.Module) -> Iterator[None]:
    """Takes away the hooks that a pass leaves behind: transformers records outputs by functions that cannot be sent
    to other processes. A later pass puts them there again."""
    before = {module: (set(module._forward_hooks), _CAPTURES in vars(module)) for module in model.modules()}
    yield
    for module, (hooks, captured) in before.items():
        for key in set(module._forward_hooks) - hooks:
            del module._forward_hooks[key]
        if not captured:
            vars(module).pop(_CAPTURES, None)


class WhitePicture:
    """A forward hook: a batch of text alone calls the vision side on a white picture and adds nothing of it.

    The same modules run as for all others, so processes that share gradients or weights stay in step.

    Args:
        white: arguments of `get_image_features`.
        loose: names of vision parameters that not every medium reads.
    """

    def __init__(self, white: dict[str, Tensor], loose: tuple[str, ...]) -> None:
        self.white, self.loose = white, loose

    def __call__(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if not module.training or not torch.is_grad_enabled():
            return None
        nothing = output.last_hidden_state.new_zeros(())
        if not any(value is not None for name, value in kwargs.items() if name.startswith("pixel_values")):
            nothing = nothing + total(module.get_image_features(**_on(module, self.white))) * 0.0
        prefix = "model."  # what the whole model puts before the base model's names
        for name in self.loose:
            nothing = nothing + module.get_parameter(name.removeprefix(prefix)).sum() * 0.0
        output.last_hidden_state = output.last_hidden_state + nothing
        return output


def total(features: Any) -> Tensor:
    """The sum of all that `get_image_features` gives the decoder, features of single layers included."""
    tensors = list(_tensors(features))
    return torch.stack([tensor.float().sum() for tensor in tensors]).sum()


def _tensors(value: Any) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        # What the tower gives before its projector is left out: it reaches the sum by the features.
        for name in ("pooler_output", "deepstack_features"):
            if value.get(name) is not None:
                yield from _tensors(value[name])
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)


def _on(module: Any, white: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the tower's device, in its type."""
    weight = next(module.get_encoder(modality="image").parameters())
    return {
        name: value.to(weight.device, weight.dtype) if value.is_floating_point() else value.to(weight.device)
        for name, value in white.items()
    }


class TextDecoder(nn.Module):
    """The language model within a multimodal one: its decoder and head, sharing their weights. The teacher."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.config = model.config.get_text_config()
        self.base_model = model.get_decoder()
        self.lm_head = model.get_output_embeddings()

    def get_decoder(self) -> nn.Module:
        decoder: nn.Module = self.base_model
        return decoder

    def get_output_embeddings(self) -> nn.Module:
        head: nn.Module = self.lm_head
        return head

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> CausalLMOutput:
        """logits [B, S, V] of int64 ids and mask [B, S]."""
        hidden = self.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        return CausalLMOutput(logits=self.lm_head(hidden.last_hidden_state))
