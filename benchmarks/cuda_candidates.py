"""What might be faster on a CUDA device; the product has none of it until it is measured to pay.

Used by `features` (frozen passes), `step_overhead` (training steps) and `decode` (JPEG files).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from models_cache.engines import Engine


def frozen_passes(engine: Engine, example: Tensor) -> Iterator[Engine]:
    """Yield an engine in 16 bits, and that compiled, and recorded as a CUDA graph.

    Args:
        engine: In float32, on a CUDA device.
        example: What it takes, float32 `[B, 3, H, W]`; each batch must have that shape.
    """
    lower = replace(engine, name=f"{engine.name}, bfloat16", dtype=torch.bfloat16)
    yield lower
    compiled: nn.Module = torch.compile(engine.forward)  # type: ignore[assignment]
    yield replace(lower, name=f"{lower.name}, torch.compile", forward=compiled)
    recorded = _Recorded(engine.forward, example)
    yield replace(engine, name=f"{lower.name}, CUDA graph", forward=recorded)


class _Recorded(nn.Module):
    """A forward pass in bfloat16 recorded once: all its kernels start with one call.

    Args:
        network: float32 `[B, 3, H, W]` -> `[B, D]`, without control flow that depends on values.
        example: Of the shape of every batch.
    """

    def __init__(self, network: nn.Module, example: Tensor) -> None:
        super().__init__()
        self._input = example.clone()
        beside = torch.cuda.Stream(example.device)
        beside.wait_stream(torch.cuda.current_stream(example.device))
        with torch.cuda.stream(beside):  # libraries make their workspaces before the recording
            for _ in range(3):
                self._pass(network)
        torch.cuda.current_stream(example.device).wait_stream(beside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._output = self._pass(network)

    @torch.inference_mode()
    def _pass(self, network: nn.Module) -> Tensor:
        # The cache of cast weights would outlive the recording's memory
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            features: Tensor = network(self._input)
        return features

    def forward(self, images: Tensor) -> Tensor:
        """Return features of a batch, which the next batch overwrites."""
        self._input.copy_(images)
        self._graph.replay()
        return self._output


def compiled_network(model: nn.Module) -> nn.Module:
    """Return a network for training that `torch.compile` makes; its first steps take long."""
    compiled: nn.Module = torch.compile(model)  # type: ignore[assignment]
    return compiled


def recorded_network(model: nn.Module, example: Tensor) -> nn.Module:
    """Return a network whose forward and backward passes are CUDA graphs, for batches of one shape.

    Args:
        model: In the modes it trains in.
        example: A batch, float32 `[B, 3, H, W]`.
    """
    with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
        recorded: nn.Module = torch.cuda.make_graphed_callables(model, (example.clone(),))
    return recorded


def decoded_on_device(files: Sequence[bytes], resize_px: int, device: torch.device) -> None:
    """Decode JPEG files by nvJPEG and resize each so that its shorter side is `resize_px`.

    Not the pixels that serving decodes: another decoder and another resize, by a few values.
    """
    from torchvision.io import ImageReadMode, decode_jpeg  # noqa: PLC0415 - may lack nvJPEG

    data = [torch.frombuffer(bytearray(file), dtype=torch.uint8) for file in files]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is announced to go to another package
        images = decode_jpeg(data, mode=ImageReadMode.RGB, device=device)
    for image in images:
        height_px, width_px = image.shape[1:]
        scale = resize_px / min(height_px, width_px)
        size = (round(height_px * scale), round(width_px * scale))
        functional.interpolate(image[None].float(), size=size, mode="bilinear", antialias=True)
    torch.cuda.synchronize(device)
