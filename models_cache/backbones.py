"""From an architecture's name to a network that gives pooled features, for all of torchvision.

One generic rule instead of a table of 80: build the classifier, take off its last linear layer,
keep everything before it. So the features of AlexNet and VGG are the 4096 values in front of
their last layer, those of ViT and Swin are normalised and pooled, and a new torchvision builder
works without a line here. Exceptions, each with its reason, stand in this file by name.

The head is ours, always pooled `[B, D]` -> Linear (`Classifier`), so that a fitted linear probe
can be put in for every architecture.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torchvision.models
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from models_cache.backbone_weights import StateDict, fit_to, read_state_dict
from models_cache.weights_errors import BackboneUnknown

_TORCHVISION_CLASSES = 1000  # the width of the classifier that is taken off
_DEFAULT_INPUT_PX = 224
_SMALLEST_INPUT_PX = 32  # five halvings leave one pixel
_SMALLEST_INPUT_PX_OF_FAMILY = {
    "alexnet": 63,  # strides 4, 2, 2, 2 without padding
    "efficientnet": 33,
    "inception": 75,
    "maxvit": 224,
    "vision_transformer": 224,
}
_FIXED_INPUT_FAMILIES = {"vision_transformer", "maxvit"}  # position tables of one size

# Auxiliary classifiers are off in both. The ImageNet weights of both expect inputs normalised
# with mean and std 0.5 and bring an input layer that gets there from the usual values; it is on
# for every weights file and for none, so that a network rebuilt later is the same network.
_EXTRA_ARGUMENTS: dict[str, dict[str, Any]] = {
    "googlenet": {"aux_logits": False, "transform_input": True, "init_weights": True},
    "inception_v3": {"aux_logits": False, "transform_input": True, "init_weights": True},
}

# Modules that only hold the stages of a network: opened when groups are made. Everything else,
# a residual stage or an Inception block, is one group.
_CONTAINERS = {"features", "layers", "encoder", "blocks", "trunk_output", "classifier"}
_NORMALISATIONS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)


class Classifier(nn.Module):
    """A backbone and a linear head: `[B, 3, H, W]` -> logits `[B, C]`.

    The head starts at zero: the first loss is ln C whatever the features are, and the place is
    ready for the fitted linear probe.

    Args:
        backbone: Gives pooled features `[B, D]`.
        width: D.
        num_classes: C.
    """

    def __init__(self, backbone: nn.Module, width: int, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(width, num_classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, float `[B, C]`, of normalised images, float `[B, 3, H, W]`."""
        logits: Tensor = self.head(self.backbone(images))
        return logits


def architectures() -> list[str]:
    """Return every classification builder of the installed torchvision, sorted."""
    return sorted(torchvision.models.list_models(module=torchvision.models))


def family(architecture: str) -> str:
    """Return the torchvision module that holds the builder: `resnet`, `vgg`, ...

    Raises:
        BackboneUnknown: The installed torchvision has no such classification builder.
    """
    if architecture not in architectures():
        raise BackboneUnknown(architecture[:100], "see the catalogue of the installed torchvision")
    builder = torchvision.models.get_model_builder(architecture)
    return str(builder.__module__).rpartition(".")[2]


def smallest_input_px(architecture: str) -> int:
    """Return the smallest side of a square image that the architecture can sensibly take."""
    return _SMALLEST_INPUT_PX_OF_FAMILY.get(family(architecture), _SMALLEST_INPUT_PX)


def has_fixed_input(architecture: str) -> bool:
    """Tell whether a built network takes images of one size only (ViT, MaxViT)."""
    return family(architecture) in _FIXED_INPUT_FAMILIES


def build_backbone(
    architecture: str,
    *,
    weights_path: Path | None = None,
    has_head: bool = True,
    input_px: int | None = None,
) -> nn.Module:
    """Build a network that gives pooled features, with the file's weights or random ones.

    Args:
        architecture: A torchvision classification builder.
        weights_path: A verified `.pth` or `.safetensors` file; None for random weights.
        has_head: Whether the file holds the classifier too; it is dropped.
        input_px: Side of the images, for architectures of fixed input (others ignore it); None
            for the size that the weights were made for, without weights 224.

    Returns:
        Module in training mode, on the CPU, float32: `[B, 3, H, W]` -> features `[B, D]`.

    Raises:
        BackboneUnknown: No such builder.
        WeightsMalformed: The file is no plain dictionary of finite tensors.
        WeightsKeysMismatch: Its tensors are not this architecture's; the sentence names them.
    """
    if weights_path is None:
        return _build(architecture, input_px)[0]
    state = read_state_dict(weights_path)
    size_px = input_px or _input_px_of(state)
    with _ParametersOnMeta():  # no time spent on random values that the file replaces
        backbone, _, head_prefix = _build(architecture, size_px)
    state = fit_to(
        backbone, state, (weights_path.name, architecture), head_prefix if has_head else None
    )
    backbone.to_empty(device="cpu")
    backbone.load_state_dict(state)
    return backbone


def tuned_names(
    backbone: nn.Module, architecture: str, weights_path: Path, has_head: bool
) -> set[str]:
    """Return the names of the backbone's tensors that are not those of a weights file.

    Args:
        backbone: On the CPU, of that architecture.
        architecture: A torchvision classification builder.
        weights_path: The verified file that training started from.
        has_head: Whether the file holds the classifier too.

    Raises:
        WeightsMalformed: The file is no plain dictionary of finite tensors.
        WeightsKeysMismatch: Its tensors are not this architecture's.
    """
    prefix = _facts(architecture)[2] if has_head else None
    names = (weights_path.name, architecture)
    original = fit_to(backbone, read_state_dict(weights_path), names, prefix)
    counted = ".num_batches_tracked"  # nothing is computed from it
    return {
        name
        for name, value in backbone.state_dict().items()
        if not name.endswith(counted) and not torch.equal(value, original[name])
    }


def build_classifier(
    architecture: str,
    num_classes: int,
    *,
    weights_path: Path | None = None,
    has_head: bool = True,
    input_px: int | None = None,
) -> Classifier:
    """Build a backbone (see `build_backbone`) with a zero head of `num_classes` outputs."""
    backbone = build_backbone(
        architecture, weights_path=weights_path, has_head=has_head, input_px=input_px
    )
    return Classifier(backbone, feature_width(architecture), num_classes)


def build_on_meta(architecture: str, *, input_px: int | None = None) -> nn.Module:
    """Build a backbone without memory for its values: shapes only."""
    with _ParametersOnMeta():
        return _build(architecture, input_px)[0].to("meta")


def feature_width(architecture: str) -> int:
    """Return D, the length of the architecture's pooled features."""
    return _facts(architecture)[0]


def parameter_count(architecture: str) -> int:
    """Return how many parameters the backbone has, without a classifier."""
    return _facts(architecture)[1]


def head_name(architecture: str) -> tuple[str, str]:
    """Return the name of the submodule that is taken off, and Python code of what replaces it."""
    name = _facts(architecture)[2].removesuffix(".")
    if family(architecture) == "squeezenet":
        return "classifier", "torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1))"
    return name, "torch.nn.Identity()"


def builder_arguments(architecture: str, input_px: int) -> dict[str, Any]:
    """Return what torchvision's builder is called with besides `weights`."""
    arguments = dict(_EXTRA_ARGUMENTS.get(architecture, {}))
    if family(architecture) == "vision_transformer":
        arguments["image_size"] = input_px
    elif family(architecture) == "maxvit":
        arguments["input_size"] = (input_px, input_px)
    return arguments


@functools.cache
def _facts(architecture: str) -> tuple[int, int, str]:
    """Return the feature width, the parameters of the backbone and its classifier's key prefix."""
    with _ParametersOnMeta():
        backbone, width, head_prefix = _build(architecture, None)
    return width, sum(p.numel() for p in backbone.parameters()), head_prefix


def has_batch_norm(backbone: nn.Module) -> bool:
    """Tell whether any layer keeps running statistics of batches."""
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in backbone.modules())


def parameter_groups_in_depth_order(backbone: nn.Module) -> list[list[nn.Parameter]]:
    """Return the backbone's parameters in stages from input to output.

    For learning rates that grow with depth and for training the last stages only. Every
    parameter is in one group; there are at least three for every architecture of torchvision.
    """
    groups: list[list[nn.Parameter]] = []
    for module, parameters in _stages(backbone):
        if groups and isinstance(module, _NORMALISATIONS):
            groups[-1].extend(parameters)  # a normalisation belongs to the layer before it
        else:
            groups.append(parameters)
    return groups


def _stages(module: nn.Module) -> Iterator[tuple[nn.Module | None, list[nn.Parameter]]]:
    if own := list(module.parameters(recurse=False)):  # class token, position table
        yield None, own
    for name, child in module.named_children():
        if name in _CONTAINERS:
            yield from _stages(child)
        elif parameters := list(child.parameters()):
            yield child, parameters


def _build(architecture: str, input_px: int | None) -> tuple[nn.Module, int, str]:
    """Return a backbone with fresh weights, its feature width, and its classifier's key prefix."""
    arguments = builder_arguments(architecture, input_px or _DEFAULT_INPUT_PX)
    network = torchvision.models.get_model(architecture, weights=None, **arguments)
    return _without_head(network)


def _without_head(network: nn.Module) -> tuple[nn.Module, int, str]:
    linears = [(n, m) for n, m in network.named_modules() if isinstance(m, nn.Linear)]
    if not linears:
        return _without_convolutional_head(network)
    name, linear = linears[-1]
    assert linear.out_features == _TORCHVISION_CLASSES, name
    network.set_submodule(name, nn.Identity())
    if isinstance(network, torchvision.models.MNASNet):
        network = _plain_mnasnet(network)
    return network, linear.in_features, f"{name}."


def _without_convolutional_head(network: nn.Module) -> tuple[nn.Module, int, str]:
    # SqueezeNet classifies each pixel by a convolution and then pools. For a linear head the
    # pooling comes first: the same function but for the ReLU between the two.
    name, convolution = [(n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d)][-1]
    assert convolution.out_channels == _TORCHVISION_CLASSES, name
    network.set_submodule("classifier", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Dropout(0.5)))
    return network, convolution.in_channels, f"{name}."


def _plain_mnasnet(network: nn.Module) -> nn.Module:
    # MNASNet refuses a state dictionary without torch's private version marks, which neither
    # safetensors nor a filtered dictionary carries. The same layers in a plain container do not.
    return nn.Sequential(
        OrderedDict(
            layers=network.get_submodule("layers"),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            classifier=network.get_submodule("classifier"),
        )
    )


def _input_px_of(state: StateDict) -> int | None:
    """Return the image side that a ViT's position table `[1, 1 + n*n, D]` was made for."""
    table, patches = state.get("encoder.pos_embedding"), state.get("conv_proj.weight")
    if table is None or patches is None or table.ndim != 3 or patches.ndim != 4:
        return None
    return int(round((table.shape[1] - 1) ** 0.5) * patches.shape[-1])


class _ParametersOnMeta(TorchFunctionMode):
    """Inside, parameters and buffers are made without memory or values.

    Drawing the values is left out as well: on meta tensors it takes 0.2 s of Python.

    `torch.device("meta")` does more: it also redirects the small computations by which RegNet
    finds its layer widths, and building fails.
    """

    _FACTORIES = frozenset({torch.empty, torch.zeros, torch.ones, torch.full, torch.rand})
    _DRAWS = frozenset({Tensor.uniform_, Tensor.normal_})

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,  # noqa: ANN401 - torch's own signature
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        if func in self._DRAWS:
            return args[0]
        kwargs = dict(kwargs or {})
        if func in self._FACTORIES and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)
