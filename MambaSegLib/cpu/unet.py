"""U-Nets for prediction on a CPU: the weights and the function of `networks.unet`, with everything fused that can be."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor, nn

from MambaSegLib.cpu.layers import Convolution, FeatureMap, Norm, Upsampling, Workspace, add, pooled
from MambaSegLib.cpu.mamba_layer import FusedMambaLayer
from MambaSegLib.networks.contract import require_divisible
from MambaSegLib.networks.conv_norm import NEGATIVE_SLOPE
from MambaSegLib.networks.mamba import MambaBlock, MambaLayer3d
from MambaSegLib.networks.unet import PlainEncoder, ResidualBlock, ResidualEncoder, UNet
from MambaSegLib.scan import resolve_backend

if TYPE_CHECKING:
    from collections.abc import Sequence

    from MambaSegLib.plan import IntTriple
    from MambaSegLib.scan.paths import Array


class Run:
    """What one prediction shares."""

    def __init__(self, workspace: Workspace, threads: int) -> None:
        """Compute with some memory and threads."""
        self.workspace, self.threads = workspace, threads

    def give(self, *maps: FeatureMap) -> None:
        """Return maps that nobody reads any more."""
        for one in maps:
            self.workspace.give(one.array)


class _ConvolutionNorm:
    """Convolution, then instance normalization and activation, which whoever reads the result carries out."""

    def __init__(self, module: nn.Module, inputs: Sequence[int], slope: float = NEGATIVE_SLOPE) -> None:
        convolution, norm = cast("nn.Sequential", module)
        self._convolution = Convolution(cast("nn.Conv3d", convolution), inputs)
        self._norm = Norm.of(cast("nn.InstanceNorm3d", norm))
        self._slope = slope
        self.channels = self._convolution.channels

    def run(self, inputs: Sequence[FeatureMap], run: Run) -> FeatureMap:
        raw, moments = self._convolution.run(inputs, run.workspace, run.threads)
        return self._norm.apply(raw, moments, self._slope)

    def run_image(self, image: Array, run: Run) -> FeatureMap:
        raw, moments = self._convolution.run((), run.workspace, run.threads, image)
        return self._norm.apply(raw, moments, self._slope)


class FusedBlock:
    """`ResidualBlock`."""

    def __init__(self, module: ResidualBlock, inputs: Sequence[int]) -> None:
        """Pack the weights; `inputs` are the channels of its one or two inputs."""
        self._first = _ConvolutionNorm(module.first[0], inputs)
        self.channels = self._first.channels
        self._second = _ConvolutionNorm(module.second, (self.channels,), slope=1.0)
        self._stride: IntTriple | None = None
        self._projection: _ConvolutionNorm | None = None
        for part in module.shortcut:
            if isinstance(part, nn.AvgPool3d):
                self._stride = cast("IntTriple", part.stride)
            else:
                self._projection = _ConvolutionNorm(part, inputs, slope=1.0)

    def run(self, inputs: Sequence[FeatureMap], run: Run) -> FeatureMap:
        """Run on maps, which are left to the caller."""
        inner = self._first.run(inputs, run)
        outer = self._second.run((inner,), run)
        run.give(inner)
        shortcut = list(inputs)
        made: list[FeatureMap] = []
        if self._stride is not None:
            shortcut = made = [pooled(one, self._stride, run.workspace, run.threads) for one in inputs]
        if self._projection is not None:
            projected = self._projection.run(shortcut, run)
            shortcut, made = [projected], [*made, projected]
        result = add(outer, shortcut[0], NEGATIVE_SLOPE, run.threads)
        run.give(*made)
        return result


class _Stage:
    """`residual_blocks` or `plain_blocks`."""

    def __init__(self, module: nn.Module, inputs: Sequence[int]) -> None:
        self._blocks: list[FusedBlock | _ConvolutionNorm] = []
        for block in cast("nn.Sequential", module):
            if isinstance(block, ResidualBlock):
                self._blocks.append(FusedBlock(block, inputs))
            else:
                convolution, _activation = cast("nn.Sequential", block)
                self._blocks.append(_ConvolutionNorm(convolution, inputs))
            inputs = (self._blocks[-1].channels,)
        self.channels = self._blocks[-1].channels

    def run(self, inputs: Sequence[FeatureMap], run: Run, image: Array | None = None) -> FeatureMap:
        """Run all blocks on maps, which are left to the caller, or on an image."""
        first, *others = self._blocks
        if image is not None:
            assert isinstance(first, _ConvolutionNorm), "an image goes through a plain convolution first"
            x = first.run_image(image, run)
        else:
            x = first.run(inputs, run)
        for block in others:
            previous, x = x, block.run((x,), run)
            run.give(previous)
        return x


class FusedUNet:
    """The finest output of a `UNet` on float32 images, without gradients."""

    def __init__(self, network: UNet, workspace: Workspace) -> None:
        """Pack the weights; later changes of the network's are not seen.

        Args:
            network: One that `has_twin`.
            workspace: Memory, which networks that run one after another may share.
        """
        encoder, decoder = network.encoder, network.decoder
        self._divisor = network.divisor
        self._stem: _ConvolutionNorm | None = None
        inputs: tuple[int, ...] = ()  # the image
        stages = cast("nn.ModuleList", encoder.stages)
        self._after = [_Between(nn.Identity()) for _ in stages]
        if isinstance(encoder, ResidualEncoder):
            self._after = [_Between(module) for module in encoder.after_stage]
            self._stem = _ConvolutionNorm(encoder.stem[0], inputs)
            inputs = (self._stem.channels,)
        self._encoder: list[_Stage] = []
        for module in stages:
            self._encoder.append(_Stage(module, inputs))
            inputs = (self._encoder[-1].channels,)
        self._upsample = [Upsampling(cast("nn.ConvTranspose3d", module)) for module in decoder.upsample]
        self._decoder = [
            _Stage(module, (up.channels, up.channels))
            for module, up in zip(decoder.stages, self._upsample, strict=True)
        ]
        self._head = Convolution(cast("nn.Conv3d", decoder.heads[-1]), (self._decoder[-1].channels,))
        self._workspace = workspace

    def __call__(self, image: Tensor) -> Tensor:
        """Logits (B, K, Z, Y, X) of images (B, C, Z, Y, X)."""
        require_divisible(tuple(image.shape[2:]), self._divisor)
        with self._workspace.lock:
            try:
                return torch.cat([self._one(entry) for entry in image])
            finally:
                self._workspace.reclaim()

    def _one(self, image: Tensor) -> Tensor:
        run = Run(self._workspace, torch.get_num_threads())
        skips = self._encode(image, run)
        x = skips.pop()
        for upsample, decode in zip(self._upsample, self._decoder, strict=True):
            enlarged, skip = upsample.run(x, run.workspace, run.threads), skips.pop()
            run.give(x)
            x = decode.run((enlarged, skip), run)
            run.give(enlarged, skip)
        logits, _ = self._head.run((x,), run.workspace, run.threads)
        result = torch.from_numpy(logits.array)[..., : logits.channels].permute(3, 0, 1, 2)[None].clone()
        run.give(x, logits)
        return result

    def _encode(self, image: Tensor, run: Run) -> list[FeatureMap]:
        pixels: Array = np.ascontiguousarray(image.permute(1, 2, 3, 0).numpy())
        skips: list[FeatureMap] = []
        stem = None if self._stem is None else _applied(self._stem.run_image(pixels, run), run)
        for stage, after in zip(self._encoder, self._after, strict=True):
            if skips or stem is not None:
                x = stage.run((skips[-1] if skips else stem,), run)  # type: ignore[arg-type]
            else:
                x = stage.run((), run, pixels)
            if not skips and stem is not None:
                run.give(stem)
            skips.append(after.run(x, run))
        return skips


def _applied(source: FeatureMap, run: Run) -> FeatureMap:
    """Carry out a pending normalization, in place: the map is read in more than one place."""
    pending = FeatureMap(source.array, source.channels, source.scale, source.shift)
    nothing = np.zeros_like(pending.scale)
    return add(pending, FeatureMap(source.array, source.channels, nothing, nothing), source.slope, run.threads)


class _Between:
    """What follows an encoder stage: nothing, a Mamba layer, or any other module."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._layer: FusedMambaLayer | None = None
        # A scan backend that was asked for by name scans.
        if type(module) is MambaLayer3d and all(
            resolve_backend(part.scan_backend, "cpu") == "numba"
            for part in module.modules()
            if isinstance(part, MambaBlock)
        ):
            self._layer = FusedMambaLayer(module)

    def run(self, x: FeatureMap, run: Run) -> FeatureMap:
        """The module's output; `x` is given back, or is it."""
        if isinstance(self._module, nn.Identity):
            return x
        if self._layer is not None:
            result = self._layer.run(x, run.workspace, run.threads)
            run.give(x)
            return result
        used = torch.from_numpy(x.array)[..., : x.channels]
        mixed: Tensor = self._module(used.permute(3, 0, 1, 2)[None])
        used.copy_(mixed[0].permute(1, 2, 3, 0))
        return x


def has_twin(network: nn.Module) -> bool:
    """Whether `FusedUNet` can take a network."""
    return type(network) is UNet and type(network.encoder) in (PlainEncoder, ResidualEncoder)
