"""Weights into backbones: what fits, what is refused, and that it comes back unchanged."""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import torchvision  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from models_cache import backbones  # noqa: E402
from models_cache.backbone_weights import fit_to, read_state_dict  # noqa: E402
from models_cache.weights_errors import (  # noqa: E402
    BackboneUnknown,
    WeightsKeysMismatch,
    WeightsMalformed,
)

SIDE_PX = 64


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def torchvision_file(path: Path, architecture: str, **arguments: Any) -> nn.Module:  # noqa: ANN401
    """Save a random network as torchvision saves its own; return the network."""
    torch.manual_seed(7)
    network: nn.Module = torchvision.models.get_model(architecture, weights=None, **arguments)
    torch.save(network.state_dict(), path)
    return network.eval()


def images(side_px: int = SIDE_PX) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    drawn: Tensor = torch.randn(2, 3, side_px, side_px, generator=generator)
    return drawn


@pytest.mark.parametrize(
    ("architecture", "head"),
    [
        ("resnet18", "fc"),
        ("mobilenet_v3_small", "classifier.3"),
        ("mnasnet0_5", "classifier.1"),
        ("alexnet", "classifier.6"),
        ("shufflenet_v2_x0_5", "fc"),
        ("densenet121", "classifier"),
        ("convnext_tiny", "classifier.2"),
        ("swin_t", "head"),
    ],
)
def test_features_and_torchvisions_last_layer_give_torchvisions_logits(
    architecture: str, head: str, tmp_path: Path
) -> None:
    network = torchvision_file(tmp_path / "w.pth", architecture)
    backbone = backbones.build_backbone(architecture, weights_path=tmp_path / "w.pth").eval()
    with torch.inference_mode():
        logits = network.get_submodule(head)(backbone(images()))
        torch.testing.assert_close(logits, network(images()))


def test_inception_weights_with_auxiliary_classifier_give_torchvisions_logits(
    tmp_path: Path,
) -> None:
    arguments = {"aux_logits": True, "transform_input": True, "init_weights": False}
    network = torchvision_file(tmp_path / "w.pth", "inception_v3", **arguments)
    backbone = backbones.build_backbone("inception_v3", weights_path=tmp_path / "w.pth").eval()
    with torch.inference_mode():
        logits = network.get_submodule("fc")(backbone(images(96)))
        torch.testing.assert_close(logits, network(images(96)))


def test_squeezenet_features_are_pooled_before_the_head(tmp_path: Path) -> None:
    network = torchvision_file(tmp_path / "w.pth", "squeezenet1_1")
    backbone = backbones.build_backbone("squeezenet1_1", weights_path=tmp_path / "w.pth").eval()
    with torch.inference_mode():
        expected = network.get_submodule("features")(images()).mean((2, 3))
        torch.testing.assert_close(backbone(images()), expected)


def test_vision_transformer_takes_the_image_size_of_its_weights(tmp_path: Path) -> None:
    torchvision_file(tmp_path / "w.pth", "vit_b_32", image_size=96)
    backbone = backbones.build_backbone("vit_b_32", weights_path=tmp_path / "w.pth").eval()
    with torch.inference_mode():
        assert backbone(images(96)).shape == (2, 768)
    with pytest.raises(WeightsKeysMismatch, match="pos_embedding"):
        backbones.build_backbone("vit_b_32", weights_path=tmp_path / "w.pth", input_px=224)


def _legacy(architecture: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    old = {}
    for key, value in state.items():
        if architecture == "densenet121":
            for number in "12":
                for layer in ("norm", "conv"):
                    key = key.replace(f".{layer}{number}.", f".{layer}.{number}.")
        else:
            key = key.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2.")
        if not key.endswith("num_batches_tracked"):
            old[key] = value
    return old


def test_names_of_old_official_files_are_understood(tmp_path: Path) -> None:
    network = torchvision_file(tmp_path / "w.pth", "densenet121")
    old = _legacy("densenet121", network.state_dict())
    assert old.keys() != network.state_dict().keys()
    torch.save(old, tmp_path / "old.pth")
    backbone = backbones.build_backbone("densenet121", weights_path=tmp_path / "old.pth").eval()
    with torch.inference_mode():
        expected = network.get_submodule("features")(images()).relu().mean((2, 3))
        torch.testing.assert_close(backbone(images()), expected)


def test_names_of_old_vision_transformer_files_are_understood() -> None:
    backbone = backbones.build_on_meta("vit_b_32")
    wanted = backbone.state_dict()
    old = _legacy("vit_b_32", wanted)
    assert old.keys() != wanted.keys()
    assert fit_to(backbone, old, ("old.pth", "vit_b_32"), None).keys() == wanted.keys()


@pytest.mark.parametrize("architecture", ["resnet18", "mnasnet0_5"])
def test_safetensors_and_half_precision_files_are_read(architecture: str, tmp_path: Path) -> None:
    network = torchvision_file(tmp_path / "w.pth", architecture)
    half = {k: v.half() if v.is_floating_point() else v for k, v in network.state_dict().items()}
    save_file(half, tmp_path / "w.safetensors")
    backbone = backbones.build_backbone(
        architecture, weights_path=tmp_path / "w.safetensors"
    ).eval()
    assert {p.dtype for p in backbone.parameters()} == {torch.float32}
    exact = backbones.build_backbone(architecture, weights_path=tmp_path / "w.pth").eval()
    with torch.inference_mode():
        torch.testing.assert_close(backbone(images()), exact(images()), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("architecture", ["mnasnet0_5", "squeezenet1_0", "googlenet"])
def test_classifier_comes_back_from_its_plain_state_dict(architecture: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    classifier = backbones.build_classifier(architecture, 4).eval()
    nn.init.normal_(classifier.head.weight)
    save_file(classifier.state_dict(), tmp_path / "c.safetensors")
    again = backbones.build_classifier(architecture, 4).eval()
    from_file = read_state_dict(tmp_path / "c.safetensors")
    again.load_state_dict(from_file)
    with torch.inference_mode():
        assert torch.equal(again(images()), classifier(images()))


def test_fresh_head_gives_every_class_the_same_chance() -> None:
    classifier = backbones.build_classifier("squeezenet1_1", 5).eval()
    with torch.inference_mode():
        loss = nn.functional.cross_entropy(classifier(images()), torch.tensor([0, 4]))
    assert loss.item() == pytest.approx(math.log(5))


def test_unknown_architecture_is_refused() -> None:
    for name in ("resnet999", "fcn_resnet50", "Resnet18", ""):
        with pytest.raises(BackboneUnknown):
            backbones.build_backbone(name)


def test_misfit_names_keys_and_counts(tmp_path: Path) -> None:
    state = torchvision_file(tmp_path / "w.pth", "resnet18").state_dict()
    path = tmp_path / "bad.pth"

    def misfit(changed: dict[str, Tensor], has_head: bool = True) -> WeightsKeysMismatch:
        torch.save(changed, path)
        with pytest.raises(WeightsKeysMismatch) as raised:
            backbones.build_backbone("resnet18", weights_path=path, has_head=has_head)
        assert raised.value.architecture == "resnet18"
        return raised.value

    error = misfit({k: v for k, v in state.items() if k != "conv1.weight"})
    assert (error.missing, error.missing_count) == ("conv1.weight", 1)
    assert (error.unexpected_count, error.misshapen_count) == (0, 0)
    error = misfit(state | {"extra.weight": torch.zeros(1)})
    assert (error.unexpected, error.unexpected_count) == ("extra.weight", 1)
    error = misfit(state | {"conv1.weight": torch.zeros(1, 2)})
    assert error.misshapen == "conv1.weight [1, 2] instead of [64, 3, 7, 7]"
    error = misfit(state, has_head=False)
    assert error.unexpected == "fc.weight, fc.bias"
    error = misfit({k: v for k, v in state.items() if not k.startswith("fc.")})
    assert error.missing == "fc.weight"
    error = misfit({k: v for k, v in state.items() if not k.startswith("layer")})
    assert error.missing_count > 90
    assert f"and {error.missing_count - 10} more" in str(error)


class Evil:
    """Unpickling it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_pickle_that_runs_code_is_refused_and_runs_none(tmp_path: Path) -> None:
    trap = tmp_path / "executed"
    torch.save({"a": Evil(trap)}, tmp_path / "zip.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"a": Evil(trap)}, protocol=2))
    for name in ("zip.pth", "plain.pth"):
        with pytest.raises(WeightsMalformed):
            backbones.build_backbone("resnet18", weights_path=tmp_path / name)
    assert not trap.exists()


@pytest.mark.filterwarnings("ignore:Validating sparse tensor:UserWarning")
def test_file_that_holds_no_plain_finite_tensors_is_refused(tmp_path: Path) -> None:
    good = tmp_path / "good.pth"
    state = torchvision_file(good, "squeezenet1_1").state_dict()
    key = next(iter(state))
    content: list[object] = [
        state | {key: torch.full_like(state[key], math.nan)},
        state | {key: torch.full_like(state[key], math.inf)},
        state | {key: "text"},
        state | {key: state[key].to_sparse()},
        state | {7: state[key]},
        {"state_dict": state},
        [state],
        {},
        torch.zeros(3),
    ]
    for value in content:
        torch.save(value, tmp_path / "bad.pth")
        with pytest.raises(WeightsMalformed):
            backbones.build_backbone("squeezenet1_1", weights_path=tmp_path / "bad.pth")
    data = good.read_bytes()
    for damaged in (b"", data[:100], data[: len(data) // 2], b"<html></html>", bytes(1000)):
        for name in ("bad.pth", "bad.safetensors"):
            (tmp_path / name).write_bytes(damaged)
            with pytest.raises(WeightsMalformed):
                backbones.build_backbone("squeezenet1_1", weights_path=tmp_path / name)


def test_batch_normalisation_is_seen() -> None:
    assert backbones.has_batch_norm(backbones.build_on_meta("resnet18"))
    assert not backbones.has_batch_norm(backbones.build_on_meta("squeezenet1_1"))
    assert not backbones.has_batch_norm(backbones.build_on_meta("swin_t"))


def test_groups_follow_the_stages_of_a_network() -> None:
    backbone = backbones.build_on_meta("resnet18")
    groups = backbones.parameter_groups_in_depth_order(backbone)
    assert len(groups) == 5  # the stem with its normalisation, and four stages
    last = {id(p) for p in backbone.get_submodule("layer4").parameters()}
    assert {id(p) for p in groups[-1]} == last


@pytest.mark.shared
@pytest.mark.parametrize(
    ("architecture", "file", "width"),
    [
        ("mobilenet_v2", "mobilenet_v2-56a4ce62.pth", 1280),
        ("squeezenet1_1", "squeezenet1_1-3d0b3737.pth", 512),
    ],
)
def test_shared_weights_give_finite_features_that_round_trip(
    architecture: str, file: str, width: int, shared: Path, tmp_path: Path
) -> None:
    path = shared / "weights" / file
    classifier = backbones.build_classifier(
        architecture, 2, weights_path=path, has_head=False
    ).eval()
    stored = torch.load(path, weights_only=True)
    assert backbones.feature_width(architecture) == width
    with torch.inference_mode():
        features = classifier.backbone(images(224))
    assert features.shape == (2, width)
    assert bool(torch.isfinite(features).all())
    assert features.std() > 0
    assert classifier.backbone.state_dict().keys() == stored.keys()
    for key, value in classifier.backbone.state_dict().items():
        assert torch.equal(value, stored[key]), key

    save_file(classifier.state_dict(), tmp_path / "c.safetensors")
    again = backbones.build_classifier(architecture, 2).eval()
    again.load_state_dict(read_state_dict(tmp_path / "c.safetensors"))
    with torch.inference_mode():
        assert torch.equal(again.backbone(images(224)), features)
    with pytest.raises(WeightsKeysMismatch):
        backbones.build_backbone(architecture, weights_path=path, has_head=True)
