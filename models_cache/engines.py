"""What runs a frozen forward pass, and the choice among those that need no preparation.

An engine's name is part of the numerics identity. The eager network is the truth: another engine
is used only where it gives the same features on the images at hand. Engines that have to be built
first are in `engine_store`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Tracer
from torch.fx.experimental.optimization import fuse

from models_cache.backbones import has_batch_norm
from models_cache.features import (
    freeze,
    is_out_of_memory,
    normalised,
    normalised_planes,
)
from models_cache.preprocessing import Preprocessing

EAGER = "eager channels-last"
FOLDED = "eager channels-last, BatchNorm folded"

# Measured: features of mobilenet_v2 of magnitude 6 change by 3e-5 when BatchNorm is folded or
# when ONNX Runtime computes them, those of squeezenet1_1 of magnitude 55 by 3e-5.
TOLERANCE = 1e-4  # largest difference to eager features, relative to the largest feature


@dataclass(frozen=True)
class Engine:
    """What runs a frozen forward pass.

    Args:
        name: Part of the numerics identity.
        forward: float32 `[B, 3, H, W]` -> features float32 `[B, D]`.
        device: Where its input has to be.
        size_bytes: What it keeps in memory.
        dtype: In which convolutions and products are computed, by autocast.
        planar: Whether it wants the channels of its input one behind the other.
    """

    name: str
    forward: nn.Module
    device: torch.device
    size_bytes: int
    dtype: torch.dtype = torch.float32
    planar: bool = False

    @classmethod
    def of(cls, name: str, network: nn.Module) -> Engine:
        """Return the engine that is a module of torch."""
        tensors = [*network.parameters(), *network.buffers()]
        return cls(name, network, tensors[0].device, sum(tensor.nbytes for tensor in tensors))

    @torch.inference_mode()
    def features(self, pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
        """Return features, float32 `[B, D]` on the CPU, of pixels uint8 `[B, H, W, 3]`."""
        return self.outputs(self.input_of(pixels, preprocessing)).float().cpu()

    def input_of(self, pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
        """Return what `outputs` takes for pixels uint8 `[B, H, W, 3]`, on the device."""
        if self.planar:
            return torch.from_numpy(normalised_planes(pixels.numpy(), preprocessing))
        return normalised(pixels.to(self.device, non_blocking=True), preprocessing)

    @torch.inference_mode()
    def outputs(self, batch: Tensor) -> Tensor:
        """Return what the network gives for its input, both on the device."""
        lower = self.dtype != torch.float32
        with torch.autocast(self.device.type, self.dtype, enabled=lower):
            found: Tensor = self.forward(batch)
        return found


def choose_engine(
    backbone: nn.Module,
    probe: Tensor,
    preprocessing: Preprocessing,
    exclusive: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Engine:
    """Return the fastest engine of torch that gives the eager network's features on `probe`.

    The choice depends on the network alone, never on timing: it is part of the cache key.

    Args:
        backbone: A frozen backbone; see `freeze`. The engine may share its parameters.
        probe: Pixels uint8 `[B, H, W, 3]`; two images suffice.
        preprocessing: What turns them into input.
        exclusive: Held around the trace and each forward pass, where other threads run modules:
            torch's tracer replaces `nn.Module.__call__` for the whole process meanwhile.
    """
    batch = normalised(probe, preprocessing)
    return choose_engine_for(backbone, batch, exclusive)


def choose_engine_for(
    network: nn.Module,
    batch: Tensor,
    exclusive: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Engine:
    """Return the fastest engine of torch for a network or a part of one; see `choose_engine`.

    Args:
        network: Frozen; see `freeze`. The engine may share its parameters.
        batch: Input on which the engines have to agree.
        exclusive: As `choose_engine` wants it.
    """
    eager = Engine.of(EAGER, network)
    if not has_batch_norm(network):
        return eager
    try:
        with exclusive():
            graph = Tracer().trace(network)
        # The folding can take a hundred times as long as the trace, and disturbs nobody. It puts
        # new layers into a graph of its own: the network stays as it is.
        folded = fuse(GraphModule(network, graph), inplace=True, no_trace=True)
    except Exception as error:  # control flow that cannot be traced raises anything
        if is_out_of_memory(error):  # with more memory the choice would be another
            raise
        return eager
    engine = Engine.of(FOLDED, freeze(folded, batch.device))
    with exclusive():
        expected = eager.outputs(batch)
    with exclusive():
        found = engine.outputs(batch)
    return engine if agree(found, expected) else eager


def agree(found: Tensor, expected: Tensor) -> bool:
    """Tell whether an engine's features are the eager ones within `TOLERANCE`."""
    largest = (found - expected).abs().max()
    return bool(largest <= TOLERANCE * expected.abs().max())  # False for NaN


def extract_features(
    engine: Engine, batches: Iterable[Tensor], preprocessing: Preprocessing, batch_size: int
) -> Tensor:
    """Return the features of all images, float32 `[N, D]` on the CPU, in their order.

    Every pass has the same number of images, the last one filled with black: kernels are chosen
    by shape, and so an image's features do not depend on who else is embedded, nor on its place.

    Args:
        engine: What runs the pass.
        batches: Pixels uint8 `[B, H, W, 3]`, any number of batches.
        preprocessing: What turns them into input.
        batch_size: Images of a pass; no batch has more.
    """
    found = []
    for pixels in batches:
        missing = batch_size - len(pixels)
        black = pixels.new_zeros(missing, *pixels.shape[1:])
        filled = torch.cat([pixels, black]) if missing else pixels
        found.append(engine.features(filled, preprocessing)[: len(pixels)])
    return torch.cat(found)
