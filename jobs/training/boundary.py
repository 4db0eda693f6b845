"""Where only the last stages learn, what the frozen ones say of an image is computed once.

The network is cut where the first learning value comes in. Every view of every image passes the
frozen part once; its outputs, the activations at the boundary, wait in a file that is mapped into
memory, and each epoch passes the learning part alone.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node, Tracer
from torchvision.ops import StochasticDepth

from models_cache.backbones import Classifier
from models_cache.durable import needing_space
from models_cache.features import is_out_of_memory

LIMIT_BYTES = 4 << 30  # of activations; larger ones are computed again in each epoch
_RANDOM_WORDS = ("dropout", "stochastic_depth", "rand")  # in names of what draws at random


@dataclass(frozen=True)
class CutNetwork:
    """A backbone in two parts that share its modules.

    Args:
        frozen: float32 `[B, 3, H, W]` -> activations `[B, ...]`; nothing in it learns or draws.
        learning: activations -> features `[B, D]`.
    """

    frozen: GraphModule
    learning: GraphModule


class _Tracer(Tracer):
    """Does not look into what behaves otherwise in training: its mode would be written down."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, StochasticDepth) or super().is_leaf_module(m, module_qualified_name)


def cut_at_boundary(backbone: nn.Module) -> CutNetwork | None:
    """Return the two parts of a backbone; None where one tensor does not separate them.

    Args:
        backbone: In the modes it trains in, with `requires_grad` settled.

    A convolution gives an image the same bits in every batch, but for oneDNN's choice of kernels
    at batches below some 16 images (measured: SqueezeNet at 1 and 7; MobileNetV2, ResNet-18
    never); a linear layer does so only in batches of one size.
    """
    try:
        graph = _Tracer().trace(backbone)
    except Exception as error:  # control flow that cannot be traced raises anything
        if is_out_of_memory(error):
            raise
        return None
    if any(_draws(node) for node in graph.nodes):
        return None
    frozen = _frozen_nodes(graph, backbone)
    border = {
        source
        for node in graph.nodes
        if node not in frozen
        for source in node.all_input_nodes
        if source in frozen and source.op != "get_attr"
    }
    if len(border) != 1:  # none: nothing is frozen, or nothing behind it learns but the head
        return None
    (boundary,) = border
    if boundary.op == "placeholder":
        return None
    return CutNetwork(
        _pruned(GraphModule(backbone, _graph_up_to(graph, boundary))),
        _pruned(GraphModule(backbone, _graph_from(graph, boundary, frozen))),
    )


def _pruned(module: GraphModule) -> GraphModule:
    """Return the module without what nobody needs, such as shapes that the other part took."""
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()
    return module


def _frozen_nodes(graph: Graph, backbone: nn.Module) -> set[Node]:
    """Return the nodes whose value for an image is the same in every epoch."""
    frozen: set[Node] = set()
    for node in graph.nodes:
        if node.op == "output" or any(source not in frozen for source in node.all_input_nodes):
            continue
        if node.op == "call_module":
            module = backbone.get_submodule(str(node.target))
            fixed = _is_fixed(module)
        elif node.op == "get_attr":
            fixed = not _value_of(backbone, str(node.target)).requires_grad
        else:
            fixed = True
        if fixed:
            frozen.add(node)
    return frozen


def _draws(node: Node) -> bool:
    """Tell whether a node is a random function, whose mode the trace has written down for good."""
    name = str(getattr(node.target, "__name__", node.target))
    return node.op == "call_function" and any(word in name for word in _RANDOM_WORDS)


def _is_fixed(module: nn.Module) -> bool:
    if any(parameter.requires_grad for parameter in module.parameters()):
        return False
    keeps_statistics = next(module.buffers(), None) is not None
    draws = isinstance(module, (nn.modules.dropout._DropoutNd, StochasticDepth))
    return not (module.training and (keeps_statistics or draws))


def _value_of(backbone: nn.Module, target: str) -> Tensor:
    owner, _, name = target.rpartition(".")
    value: Tensor = getattr(backbone.get_submodule(owner), name)
    return value


def _graph_up_to(graph: Graph, boundary: Node) -> Graph:
    made, copies = Graph(), dict[Node, Node]()
    for node in graph.nodes:
        copies[node] = made.node_copy(node, copies.__getitem__)
        if node is boundary:
            break
    made.output(copies[boundary])
    return made


def _graph_from(graph: Graph, boundary: Node, frozen: set[Node]) -> Graph:
    made, copies = Graph(), dict[Node, Node]()
    copies[boundary] = made.placeholder("activations")
    for node in graph.nodes:
        if node not in frozen or node.op == "get_attr":
            copies[node] = made.node_copy(node, copies.__getitem__)
    return made


@dataclass(frozen=True)
class Activations:
    """Activations of all images in all their views, float32 in a file without a name.

    Args:
        values: `[V * N, ...]`, a view after the other; channels last where there are channels.
        images: N.
    """

    values: NDArray[np.float32]
    images: int

    def of(self, indices: NDArray[np.int64], view: NDArray[np.int64]) -> Tensor:
        """Return activations of some images in one of their views each, `[B, ...]`."""
        chosen = torch.from_numpy(self.values[view * self.images + indices])
        return chosen.movedim(-1, 1) if chosen.ndim == 4 else chosen


@dataclass(frozen=True)
class FrozenStages:
    """What replaces the frozen stages of a model while it trains.

    Args:
        model: Its backbone was cut.
        network: The two parts.
        train: Of the training images, in all their views.
        held_out: Of the held-out images.
    """

    model: Classifier
    network: CutNetwork
    train: Activations
    held_out: Activations

    def logits(self, activations: Tensor) -> Tensor:
        """Return logits `[B, C]` of activations `[B, ...]`."""
        logits: Tensor = self.model.head(self.network.learning(activations))
        return logits

    @torch.inference_mode()
    def held_out_logits(self, at_once: int, poll: Callable[[], None]) -> Tensor:
        """Return logits of the held-out images, float32 `[N, C]` on the CPU; see `evaluate`."""
        self.model.eval()
        device, count, logits = self.model.head.weight.device, self.held_out.images, []
        for start in range(0, count, at_once):
            poll()
            places = np.arange(start, min(start + at_once, count))
            found = self.logits(self.held_out.of(places, np.zeros_like(places)).to(device))
            logits.append(found.float().cpu())
        return torch.cat(logits)


def compute_activations(
    network: CutNetwork,
    inputs: Callable[[int, NDArray[np.int64]], Tensor],
    images: int,
    views: int,
    folder: Path,
    at_once: int,
) -> Activations | None:
    """Return the activations of all images; None if they take more than `LIMIT_BYTES`.

    Images pass in batches that do not depend on what was done before, so a resumed training
    learns from the same bits.

    Args:
        network: Its frozen part makes them.
        inputs: Gives a view of images, float32 `[B, 3, H, W]`, for its number and their places.
        images: N.
        views: V.
        folder: Where the file is; it has no name there and goes with the process.
        at_once: Images per forward pass.

    Raises:
        InsufficientStorage: The disk is full.
    """
    values: NDArray[np.float32] | None = None
    for view in range(views):
        for start in range(0, images, at_once):
            places = np.arange(start, min(start + at_once, images))
            with torch.no_grad():
                found = network.frozen(inputs(view, places)).float().cpu()
            found = found.movedim(1, -1) if found.ndim == 4 else found
            if values is None:
                shape = (views * images, *found.shape[1:])
                if 4 * math.prod(shape) > LIMIT_BYTES:
                    return None
                values = _mapped(folder, shape)
            values[view * images + places] = found.numpy()
    assert values is not None, "there are images"
    return Activations(values, images)


def _mapped(folder: Path, shape: tuple[int, ...]) -> NDArray[np.float32]:
    folder.mkdir(parents=True, exist_ok=True)
    with needing_space("caching activations"), tempfile.TemporaryFile(dir=folder) as file:
        # Written space, not a hole: a full disk is an error here and not a SIGBUS later
        os.posix_fallocate(file.fileno(), 0, 4 * math.prod(shape))
        return np.memmap(file, dtype=np.float32, mode="r+", shape=shape)
