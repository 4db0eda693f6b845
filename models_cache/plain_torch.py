"""Python code that loads an artifact with torch, torchvision and safetensors alone."""

from __future__ import annotations

from models_cache.artifacts import MULTILABEL, ArtifactFacts
from models_cache.backbones import builder_arguments, head_name

_CODE = """\
import torch, torchvision
from safetensors.torch import load_file

network = torchvision.models.get_model({architecture!r}, weights=None{arguments})
{weights}network.set_submodule({head!r}, {replacement})
head = torch.nn.Linear({width}, {classes})
{tensors}model = torch.nn.Sequential(network, head).eval()

golden = load_file("golden.safetensors")  # two images and what the model made of them
mean, std = torch.tensor({mean}), torch.tensor({std})
images = ((golden["images"] / 255 - mean) / std).permute(0, 3, 1, 2)
with torch.inference_mode():
    logits = model(images)
torch.testing.assert_close(logits, golden["logits"], atol=1e-3, rtol=1e-3)
scores = {scores}
"""
_PRETRAINED = """\
# The pretrained file {file}, sha256 {sha256}
network.load_state_dict(torch.load({file!r}, weights_only=True), strict=False)
"""
_HEAD = """\
tensors = load_file("model.safetensors")
head.load_state_dict({"weight": tensors["head.weight"], "bias": tensors["head.bias"]})
"""
_WHOLE = """\
tensors = load_file("model.safetensors")
for part, prefix in ((network, "backbone."), (head, "head.")):
    own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    part.load_state_dict(own)
"""


def _scores(facts: ArtifactFacts) -> str:
    temperature = 1.0 if facts.calibration is None else facts.calibration.temperature
    calibrated = f"(logits / {temperature!r})"
    if facts.task == MULTILABEL:
        thresholds = list(facts.thresholds or ())
        return f"{calibrated}.sigmoid()\nlabels = scores >= torch.tensor({thresholds})"
    return f"{calibrated}.softmax(dim=1)"


def loading_code(facts: ArtifactFacts) -> str | None:
    """Return a program that loads an artifact and checks its golden outputs.

    It runs in a folder with the artifact's files and, for kind `head`, the pretrained file. None
    for networks that torchvision cannot load so plainly.
    """
    name, replacement = head_name(facts.architecture)
    if facts.architecture.startswith(("mnasnet", "densenet")):
        return None  # private version marks; keys of an older spelling
    weights = ""
    if facts.kind == "head":
        assert facts.weights is not None, "a head has a backbone"
        weights = _PRETRAINED.format(file=facts.weights["file"], sha256=facts.weights["sha256"])
        if str(facts.weights["file"]).endswith(".safetensors"):
            return None
    arguments = builder_arguments(facts.architecture, facts.preprocessing.crop_px)
    return _CODE.format(
        architecture=facts.architecture,
        arguments="".join(f", {key}={value!r}" for key, value in arguments.items()),
        weights=weights,
        head=name,
        replacement=replacement,
        width=facts.feature_width,
        classes=len(facts.classes),
        tensors=_HEAD if facts.kind == "head" else _WHOLE,
        mean=facts.preprocessing.mean,
        std=facts.preprocessing.std,
        scores=_scores(facts),
    )
