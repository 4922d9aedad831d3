"""The connectors of VideoLLaMA2, in plain torch: patch features of frames to visual tokens.

The convolutional ones are a RegNet-Y stage (depthwise 3 x 3, squeeze and excitation, channel LayerNorm), a sampler
over time and space, another stage, and a perceptron. Module names are those of the official checkpoints.

Legend: N clips, T frames, P patches of a frame, F frames of all clips (N x T), C channels, H and W cells of the grid,
Q visual tokens of a clip, D hidden size of the decoder.
"""

from __future__ import annotations

from math import isqrt
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn

from harness.models.videollama2.sizes import CONNECTORS, DEPTH, SQUEEZE, STRIDE, sampler_padding

if TYPE_CHECKING:
    from collections.abc import Sequence

NORM_EPS: Final = 1e-5
"""Of the channel LayerNorms. timm's LayerNorm2d has 1e-6; the official code ends up with LayerNormAct2d and this."""


def make_connector(kind: str, channels: int, hidden: int) -> nn.Module:
    """A connector from `channels` of the vision tower to `hidden` of the decoder.

    Raises:
        ValueError: `kind` is not one of CONNECTORS.
    """
    if kind == "linear":
        return MeanLinear(channels, hidden)
    if kind == "mlp2x_gelu":
        return MeanPerceptron(nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, hidden))
    if kind not in CONNECTORS:
        raise ValueError(f"connector {kind!r} is not one of {', '.join(CONNECTORS)}")
    return ConvConnector(kind, channels, hidden)


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of [F, C, H, W]."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=NORM_EPS)

    def forward(self, x_FCHW: Tensor) -> Tensor:
        return super().forward(x_FCHW.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNorm(nn.Module):
    """Convolution without bias, then channel norm. `bn` is the official name of the norm, whatever it is."""

    def __init__(self, before: int, after: int, kernel: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, kernel, padding=kernel // 2, groups=groups, bias=False)
        self.bn = ChannelNorm(after)

    def forward(self, x_FCHW: Tensor) -> Tensor:
        normed: Tensor = self.bn(self.conv(x_FCHW))
        return normed


class SqueezeExcite(nn.Module):
    """Scales the channels by what the whole frame shows."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, width, 1)
        self.fc2 = nn.Conv2d(width, channels, 1)

    def forward(self, x_FCHW: Tensor) -> Tensor:
        mean = x_FCHW.mean((2, 3), keepdim=True)
        return x_FCHW * torch.sigmoid(self.fc2(nn.functional.silu(self.fc1(mean))))


class Block(nn.Module):
    """A RegNet-Y bottleneck block with groups of one channel."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(before, after)
        self.conv2 = ConvNorm(after, after, kernel=3, groups=after)
        self.se = SqueezeExcite(after, round(SQUEEZE * before))
        self.conv3 = ConvNorm(after, after)
        self.downsample = ConvNorm(before, after) if before != after else None

    def forward(self, x_FCHW: Tensor) -> Tensor:
        silu = nn.functional.silu
        y_FCHW = silu(self.conv2(silu(self.conv1(x_FCHW))))
        y_FCHW = self.conv3(self.se(y_FCHW))
        shortcut_FCHW = x_FCHW if self.downsample is None else self.downsample(x_FCHW)
        return silu(y_FCHW + shortcut_FCHW)


class Stage(nn.Module):
    """DEPTH blocks, b1 to b4."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        for place in range(DEPTH):
            self.add_module(f"b{place + 1}", Block(before if place == 0 else after, after))

    def forward(self, x_FCHW: Tensor) -> Tensor:
        for block in self.children():
            x_FCHW = block(x_FCHW)
        return x_FCHW


class ConvConnector(nn.Module):
    """stc_connector_v35, stc_connector (the sampler pads by one on every side) and stp_connector (it averages)."""

    def __init__(self, kind: str, channels: int, hidden: int) -> None:
        super().__init__()
        self.gradient_checkpointing = False  # set by transformers' gradient_checkpointing_enable
        self._gradient_checkpointing_func: Any = None
        self.s1 = Stage(channels, hidden)
        pool = nn.AvgPool3d(STRIDE) if kind == "stp_connector" else None
        self.sampler = nn.Sequential(
            pool or nn.Conv3d(hidden, hidden, STRIDE, stride=STRIDE, padding=sampler_padding(kind)), nn.SiLU()
        )
        self.s2 = Stage(hidden, hidden)
        self.readout = nn.Sequential(nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, hidden))

    def forward(self, features_FPC: Tensor, counts: Sequence[int], frames: int) -> Tensor:
        """Visual tokens [N, Q, D], in (time, row, column) order.

        Args:
            features_FPC: of all clips, one after the other.
            counts: frames of each clip: `frames`, or 1 for an image, which stands for `frames` equal ones. Its first
                stage, frame by frame and most of the work, is computed once.
            frames: T.
        """
        side = isqrt(features_FPC.shape[1])
        x_FCHW = features_FPC.transpose(1, 2).reshape(len(features_FPC), -1, side, side)
        x_FCHW = self._stage(self.s1, x_FCHW)
        clips = [clip.expand(frames, -1, -1, -1) for clip in torch.split(x_FCHW, list(counts))]
        x_NCTHW = self.sampler(torch.stack(clips).transpose(1, 2))
        x_FCHW = self._stage(self.s2, x_NCTHW.transpose(1, 2).flatten(0, 1))
        tokens_NQC = x_FCHW.permute(0, 2, 3, 1).reshape(len(counts), -1, x_FCHW.shape[1])
        tokens_NQD: Tensor = self.readout(tokens_NQC)
        return tokens_NQD

    def _stage(self, stage: nn.Module, x_FCHW: Tensor) -> Tensor:
        """Both stages are recomputed in the backward pass where the decoder's layers are: they keep 15 GB for four
        clips of 16 frames at full size."""
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            checkpointed: Tensor = self._gradient_checkpointing_func(stage.__call__, x_FCHW)
            return checkpointed
        result: Tensor = stage(x_FCHW)
        return result


class MeanLinear(nn.Linear):
    """`linear`: the mean over the frames, projected."""

    def forward(self, features_FPC: Tensor, counts: Sequence[int], frames: int) -> Tensor:  # type: ignore[override]
        """As `ConvConnector.forward`; Q is P."""
        mean_NPC = _mean_frames(features_FPC, counts)
        tokens_NQD: Tensor = nn.functional.linear(mean_NPC, self.weight, self.bias)
        return tokens_NQD


class MeanPerceptron(nn.Sequential):
    """`mlp2x_gelu`: the mean over the frames through two layers."""

    def forward(self, features_FPC: Tensor, counts: Sequence[int], frames: int) -> Tensor:  # type: ignore[override]
        """As `ConvConnector.forward`; Q is P."""
        tokens_NQD = _mean_frames(features_FPC, counts)
        for layer in self:
            tokens_NQD = layer(tokens_NQD)
        return tokens_NQD


def _mean_frames(features_FPC: Tensor, counts: Sequence[int]) -> Tensor:
    return torch.stack([clip.mean(dim=0) for clip in torch.split(features_FPC, list(counts))])
