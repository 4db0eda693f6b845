"""Every architecture of torchvision, one by one: build, new head, forward, backward."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

torch = pytest.importorskip("torch")

import torchvision  # noqa: E402
from torch import nn  # noqa: E402

from models_cache import backbones  # noqa: E402
from models_cache.catalogue import Catalogue, installed_snapshot  # noqa: E402

BATCH, CLASSES = 2, 3
CPU_LIMIT_PARAMETERS = 60_000_000  # larger ones go through shapes only, on the meta device
ARCHITECTURES = backbones.architectures()


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tiny inputs: two threads wait for each other longer than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_no_classification_builder_of_torchvision_is_left_out() -> None:
    assert set(torchvision.models.list_models(module=torchvision.models)) == set(ARCHITECTURES)
    assert len(ARCHITECTURES) >= 80
    known = {info.architecture for info in Catalogue.load().architectures()}
    version = ".".join(torchvision.__version__.split(".")[:2])
    if installed_snapshot().name == f"catalogue_torchvision_{version}.json":
        assert known == set(ARCHITECTURES)


def _device(architecture: str) -> str:
    few = backbones.parameter_count(architecture) < CPU_LIMIT_PARAMETERS
    return "cpu" if few else "meta"


def _classifier(architecture: str, device: str) -> backbones.Classifier:
    if device == "cpu":
        classifier = backbones.build_classifier(architecture, CLASSES)
    else:
        width = backbones.feature_width(architecture)
        meta = backbones.build_on_meta(architecture)
        classifier = backbones.Classifier(meta, width, CLASSES).to("meta")
    nn.init.normal_(classifier.head.weight)  # a zero head sends no gradient back
    return classifier


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_architecture_takes_a_new_head_and_trains_one_step(architecture: str) -> None:
    torch.manual_seed(0)
    device = _device(architecture)
    classifier = _classifier(architecture, device)
    side_px = backbones.smallest_input_px(architecture)
    images = torch.randn(BATCH, 3, side_px, side_px, device=device)

    features = classifier.backbone(images)
    assert features.shape == (BATCH, backbones.feature_width(architecture))
    logits = classifier(images)
    assert logits.shape == (BATCH, CLASSES)
    nn.functional.cross_entropy(logits, torch.tensor([0, 2], device=device)).backward()
    without_gradient = [n for n, p in classifier.named_parameters() if p.grad is None]
    assert without_gradient == []
    if device == "cpu":
        assert bool(torch.isfinite(logits).all())
        gradients = [p.grad for p in classifier.backbone.parameters() if p.grad is not None]
        assert any(bool(gradient.any()) for gradient in gradients)

    groups = backbones.parameter_groups_in_depth_order(classifier.backbone)
    assert len(groups) >= 3
    grouped = [id(p) for group in groups for p in group]
    assert sorted(grouped) == sorted(id(p) for p in classifier.backbone.parameters())
    assert len(set(grouped)) == len(grouped)
    first = next(p for p in classifier.backbone.parameters())
    assert any(p is first for p in groups[0])


def test_most_architectures_really_compute() -> None:
    meta = [name for name in ARCHITECTURES if _device(name) == "meta"]
    assert len(meta) <= 30
    families = {backbones.family(name) for name in ARCHITECTURES if name not in meta}
    # Each family computes at least once, but for the two whose smallest member is too large.
    assert {backbones.family(name) for name in meta} - families == {"vgg", "vision_transformer"}
