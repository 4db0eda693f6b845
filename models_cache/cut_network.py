"""A network in two parts: what is frozen, and from there on what learns.

The network is cut where the first learned value comes in. Training passes each image through the
frozen part once; serving keeps one such part for all networks that did not tune it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from torch import nn
from torch.fx import Graph, GraphModule, Node, Tracer
from torchvision.ops import StochasticDepth

from models_cache.features import is_out_of_memory

_RANDOM_WORDS = ("dropout", "stochastic_depth", "rand")  # in names of what draws at random


@dataclass(frozen=True)
class CutNetwork:
    """A backbone in two parts that share its modules.

    Args:
        frozen: float32 `[B, 3, H, W]` -> activations `[B, ...]`; nothing in it learns or draws.
        learning: activations -> features `[B, D]`.
        boundary: Name of what gives the activations; equal for equal cuts of one architecture.
    """

    frozen: GraphModule
    learning: GraphModule
    boundary: str


class _Tracer(Tracer):
    """Does not look into what behaves otherwise in training: its mode would be written down."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, StochasticDepth) or super().is_leaf_module(m, module_qualified_name)


def learning_names(backbone: nn.Module) -> set[str]:
    """Return the names of the parameters that learn."""
    return {name for name, value in backbone.named_parameters() if value.requires_grad}


def cut_at_boundary(backbone: nn.Module, learned: Collection[str]) -> CutNetwork | None:
    """Return the two parts of a backbone; None where one tensor does not separate them.

    Args:
        backbone: In the modes it trains or predicts in.
        learned: Names of the parameters and buffers that learn, or have learned.

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
    frozen = _frozen_nodes(graph, backbone, frozenset(learned))
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
        str(boundary),
    )


def _pruned(module: GraphModule) -> GraphModule:
    """Return the module without what nobody needs, such as shapes that the other part took."""
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()
    return module


def _frozen_nodes(graph: Graph, backbone: nn.Module, learned: frozenset[str]) -> set[Node]:
    """Return the nodes whose value for an image is the same in every epoch."""
    frozen: set[Node] = set()
    for node in graph.nodes:
        if node.op == "output" or any(source not in frozen for source in node.all_input_nodes):
            continue
        if node.op == "call_module":
            module = backbone.get_submodule(str(node.target))
            fixed = _is_fixed(module, str(node.target), learned)
        elif node.op == "get_attr":
            fixed = str(node.target) not in learned
        else:
            fixed = True
        if fixed:
            frozen.add(node)
    return frozen


def _draws(node: Node) -> bool:
    """Tell whether a node is a random function, whose mode the trace has written down for good."""
    name = str(getattr(node.target, "__name__", node.target))
    return node.op == "call_function" and any(word in name for word in _RANDOM_WORDS)


def _is_fixed(module: nn.Module, name: str, learned: frozenset[str]) -> bool:
    if any(f"{name}.{own}" in learned for own in module.state_dict(keep_vars=True)):
        return False
    keeps_statistics = next(module.buffers(), None) is not None
    draws = isinstance(module, (nn.modules.dropout._DropoutNd, StochasticDepth))
    return not (module.training and (keeps_statistics or draws))


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
