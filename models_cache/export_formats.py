"""Formats of exports: how a graph is written, and how it is run again to be checked."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models_cache.errors import GraftError
from models_cache.export_errors import ExportRuntimeMissing, ExportTooLarge, ExportUnsupported
from models_cache.export_graph import ImageGraph
from models_cache.features import is_out_of_memory
from models_cache.onnx_network import onnx_bytes, open_session

INPUT = "images"
OUTPUTS = ("probabilities", "logits")
_FREE_AXES = {0: "B", 1: "H", 2: "W"}
_EXAMPLE_SHAPE = (2, 40, 56, 3)  # lengths that differ, none of them 1: those count as fixed
_MOST_ONNX_BYTES = 2**31 - 2**20  # of one protobuf message, less what is not values
_REASON_LETTERS = 300

#: uint8 `[B, H, W, 3]` -> probabilities, float32 `[B, C]`.
Run = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


@dataclass(frozen=True)
class ExportFormat:
    """One way to write a graph down.

    Args:
        name: As people ask for it.
        file: Name of the graph's file.
        packages: What it takes besides torch.
        most_bytes: Of values that a file holds; None if there is no limit.
        write: Writes a graph to a path.
        load: Reads it again, for passes with so many threads.
    """

    name: str
    file: str
    packages: tuple[str, ...]
    most_bytes: int | None
    write: Callable[[ImageGraph, Path], None]
    load: Callable[[Path, int], Run]

    @property
    def other(self) -> str:
        """Name of the other format, for those that this one does not serve."""
        return next(name for name in FORMATS if name != self.name)


def write_graph(graph: ImageGraph, into: ExportFormat, architecture: str, path: Path) -> None:
    """Write a graph in a format.

    Raises:
        ExportRuntimeMissing: A package is not installed.
        ExportTooLarge: It does not fit into one file.
        ExportUnsupported: The exporter cannot do part of the network; the reason names it.
    """
    missing = [name for name in into.packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportRuntimeMissing(into.name, ", ".join(missing))
    tensors = (*graph.parameters(), *graph.buffers())
    size_bytes = sum(tensor.nbytes for tensor in tensors)
    if into.most_bytes is not None and size_bytes > into.most_bytes:
        raise ExportTooLarge(architecture, into.name, size_bytes, into.most_bytes, into.other)
    with _unsupported(architecture, into):
        into.write(graph, path)


def load_graph(path: Path, written: ExportFormat, architecture: str, threads: int) -> Run:
    """Read a graph and return what runs it.

    Raises:
        ExportUnsupported: The runtime cannot do part of it.
    """
    with _unsupported(architecture, written):
        return written.load(path, threads)


@contextmanager
def _unsupported(architecture: str, into: ExportFormat) -> Iterator[None]:
    try:
        yield
    except GraftError:
        raise
    except Exception as error:  # what an exporter or a runtime cannot do has any class
        if is_out_of_memory(error) or isinstance(error, OSError):  # says nothing about the network
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"
        raise ExportUnsupported(
            architecture, into.name, reason[:_REASON_LETTERS], into.other
        ) from error


def _write_onnx(graph: ImageGraph, path: Path) -> None:
    rows = {name: {0: "B"} for name in OUTPUTS}
    example = torch.zeros(_EXAMPLE_SHAPE, dtype=torch.uint8)
    path.write_bytes(onnx_bytes(graph, example, (INPUT, OUTPUTS), {INPUT: _FREE_AXES, **rows}))


def _load_onnx(path: Path, threads: int) -> Run:
    session = open_session(str(path), threads)

    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        probabilities: NDArray[np.float32] = session.run([OUTPUTS[0]], {INPUT: images})[0]
        return probabilities

    return run


def _write_torch(graph: ImageGraph, path: Path) -> None:
    free = dict.fromkeys(_FREE_AXES, torch.export.Dim.DYNAMIC)
    example = torch.zeros(_EXAMPLE_SHAPE, dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own parts among each other
        program = torch.export.export(graph, (example,), dynamic_shapes={INPUT: free})
        torch.export.save(program, path)


def _load_torch(path: Path, _threads: int) -> Run:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = torch.export.load(path).module()

    @torch.inference_mode()
    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        outputs: tuple[Tensor, Tensor] = module(torch.from_numpy(images))
        return outputs[0].numpy()

    return run


FORMATS: dict[str, ExportFormat] = {
    entry.name: entry
    for entry in (
        ExportFormat(
            "onnx", "model.onnx", ("onnx", "onnxruntime"), _MOST_ONNX_BYTES, _write_onnx, _load_onnx
        ),
        ExportFormat("torch_export", "model.pt2", (), None, _write_torch, _load_torch),
    )
}
