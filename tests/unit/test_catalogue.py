"""The catalogue without torch: snapshots, users' files, and what DEFAULT means."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from models_cache import catalogue as catalogue_module
from models_cache.catalogue import (
    ACTIVATIONS_PX,
    BackboneInfo,
    Catalogue,
    WeightsInfo,
    installed_snapshot,
    read_snapshot,
    snapshot_for,
)
from models_cache.weights_errors import (
    BackboneUnknown,
    CatalogueInvalid,
    WeightsUnknown,
    WeightsUnusable,
)

SNAPSHOTS = Path(catalogue_module.__file__).parent
ENTRY: dict[str, Any] = {
    "architecture": "mobilenet_v2",
    "name": "IMAGENET1K_PORT",
    "file": "mobilenet_v2-56a4ce62.pth",
    "sha256": "56a4ce62" + "0" * 56,
    "head": False,
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "resize": 256,
    "crop": 224,
    "license": "MIT",
    "source": "a test",
}


def write(path: Path, *entries: object) -> Path:
    path.write_text(json.dumps({"weights": entries}))
    return path


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return Catalogue.load()


def test_every_backbone_is_known_with_its_facts(catalogue: Catalogue) -> None:
    items = catalogue.architectures()
    assert [b.architecture for b in items] == sorted(b.architecture for b in items)
    assert len(items) >= 80
    for backbone in items:
        assert backbone.feature_width > 0
        assert backbone.parameters > 0
        assert backbone.smallest_input_px >= 32
        assert backbone.default in {w.name for w in backbone.weights}
        for info in backbone.weights:
            assert info.url is not None
            assert info.url.startswith("https://download.pytorch.org/models/")
            assert info.url.endswith(f"/{info.file}")
            assert info.sha256_prefix is not None
            assert f"-{info.sha256_prefix}." in info.file
            assert len(info.sha256_prefix) >= 8
            assert info.license in ("BSD-3-Clause", "CC-BY-NC-4.0")
            assert ("SWAG" in info.name) == (info.license == "CC-BY-NC-4.0")
            assert (info.accuracy_top1 is None) == (not info.usable)
            assert info.preprocessing.crop_px <= info.preprocessing.resize_px


def test_known_figures_are_right(catalogue: Catalogue) -> None:
    info = catalogue.weights("mobilenet_v2", "IMAGENET1K_V2")
    assert (info.accuracy_top1, info.accuracy_top5) == (0.72154, 0.90822)
    assert (info.preprocessing.resize_px, info.preprocessing.crop_px) == (232, 224)
    assert (info.parameters, info.gflops) == (3504872, 0.301)
    assert catalogue.backbone("mobilenet_v2").feature_width == 1280
    vit = catalogue.backbone("vit_h_14")
    assert vit.fixed_input
    assert vit.weights[0].preprocessing.interpolation == "bicubic"


def test_json_form_comes_back_equal(catalogue: Catalogue) -> None:
    for backbone in catalogue.architectures():
        assert BackboneInfo.from_json(json.loads(json.dumps(backbone.as_json()))) == backbone


def test_unknown_architecture_offers_close_names(catalogue: Catalogue) -> None:
    with pytest.raises(BackboneUnknown, match="mobilenet_v2"):
        catalogue.backbone("mobilnet_v2")


def test_unknown_and_unusable_weights_are_refused(catalogue: Catalogue) -> None:
    with pytest.raises(WeightsUnknown, match="IMAGENET1K_V2"):
        catalogue.weights("resnet50", "IMAGENET1K_V9")
    with pytest.raises(WeightsUnusable):
        catalogue.weights("vgg16", "IMAGENET1K_FEATURES")


def test_default_is_torchvisions_then_the_first_of_the_catalogue_files(tmp_path: Path) -> None:
    second = ENTRY | {"name": "SECOND", "file": "second.pth", "sha256": "1" * 64}
    catalogue = Catalogue.load(extra_files=[write(tmp_path / "c.json", ENTRY, second)])

    def names(*have: str) -> list[str]:
        found = catalogue.candidates("mobilenet_v2", have=lambda info: info.name in have)
        return [info.name for info in found]

    assert names() == ["IMAGENET1K_V2", "IMAGENET1K_PORT"]
    assert names("IMAGENET1K_PORT") == ["IMAGENET1K_V2", "IMAGENET1K_PORT"]
    assert names("IMAGENET1K_V2") == ["IMAGENET1K_V2"]
    chosen = catalogue.weights("mobilenet_v2", have=lambda info: info.name == "IMAGENET1K_PORT")
    assert chosen.name == "IMAGENET1K_PORT"
    assert catalogue.weights("mobilenet_v2").name == "IMAGENET1K_V2"
    assert catalogue.candidates("mobilenet_v2", "SECOND")[0].sha256 == "1" * 64


def test_architecture_without_any_weights_is_listed_and_says_so(tmp_path: Path) -> None:
    bare = BackboneInfo("bare", "bare", 8, 100, 1000, 32, False, None, ())
    catalogue = Catalogue([bare])
    assert catalogue.architectures() == [bare]
    with pytest.raises(WeightsUnknown, match="scratch"):
        catalogue.weights("bare")
    entry = ENTRY | {"architecture": "bare"}
    snapshot = tmp_path / "snapshot.json"
    snapshot.write_text(json.dumps({"format": 1, "backbones": [bare.as_json()]}))
    extended = Catalogue.load(snapshot, [write(tmp_path / "c.json", entry)])
    assert extended.weights("bare").name == "IMAGENET1K_PORT"
    assert extended.backbone("bare").default == "IMAGENET1K_PORT"


def test_entry_becomes_weights_with_its_own_preprocessing(tmp_path: Path) -> None:
    entry = ENTRY | {"interpolation": "bicubic", "crop": 192, "head": True}
    info = Catalogue.load(extra_files=[write(tmp_path / "c.json", entry)]).weights(
        "mobilenet_v2", "IMAGENET1K_PORT"
    )
    assert (info.origin, info.catalogue_folder, info.url) == ("catalogue", tmp_path, None)
    assert (info.sha256, info.has_head, info.license) == (ENTRY["sha256"], True, "MIT")
    assert (info.preprocessing.interpolation, info.preprocessing.crop_px) == ("bicubic", 192)
    back = WeightsInfo.from_json(json.loads(json.dumps(info.as_json())))
    assert back.preprocessing == info.preprocessing
    assert str(tmp_path) not in json.dumps(info.as_json())


def without(field: str) -> dict[str, Any]:
    return {key: value for key, value in ENTRY.items() if key != field}


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (ENTRY | {"colour": "red"}, "colour"),
        (without("sha256"), "sha256"),
        (without("license"), "license"),
        (ENTRY | {"sha256": "56A4" + "0" * 60}, "sha256"),
        (ENTRY | {"sha256": "56a4ce62"}, "sha256"),
        (ENTRY | {"architecture": "mobilenet_v9"}, "close names"),
        (ENTRY | {"architecture": ["mobilenet_v2"]}, "architecture"),
        (ENTRY | {"name": "DEFAULT"}, "DEFAULT"),
        (ENTRY | {"name": "IMAGENET1K_V1"}, "already has weights"),
        (ENTRY | {"file": "../mobilenet.pth"}, "file"),
        (ENTRY | {"file": "mobilenet.bin"}, "file"),
        (ENTRY | {"file": "mobilenet_v2-b0353104.pth"}, "another sha256"),
        (ENTRY | {"head": 0}, "head"),
        (ENTRY | {"mean": [0.5, 0.5]}, "mean"),
        (ENTRY | {"mean": [0.5, 0.5, "0.5"]}, "mean"),
        (ENTRY | {"std": [0.5, 0.5, 0]}, "std"),
        (ENTRY | {"std": [0.5, 0.5, 10**400]}, "std"),
        (ENTRY | {"resize": 256.0}, "resize"),
        (ENTRY | {"resize": 0}, "resize"),
        (ENTRY | {"crop": True}, "crop"),
        (ENTRY | {"interpolation": "lanczos"}, "interpolation"),
        (ENTRY | {"source": ""}, "source"),
        ("mobilenet_v2", "object"),
    ],
)
def test_bad_entry_is_refused_with_path_index_and_reason(
    entry: object, reason: str, tmp_path: Path
) -> None:
    good = ENTRY | {"name": "GOOD", "file": "good.pth", "sha256": "2" * 64}
    path = write(tmp_path / "catalog.json", good, entry)
    with pytest.raises(CatalogueInvalid, match=reason) as raised:
        Catalogue.load(extra_files=[path])
    assert str(path) in str(raised.value)
    assert "entry 1:" in raised.value.reason


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"weights": {}}',
        '{"weights": [], "more": 1}',
        '{"weights": [], "weights": []}',
        '{"weights": [NaN]}',
        '{"weights": [' + "[" * 100_000,
        "\x00",
    ],
)
def test_file_that_is_no_catalogue_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "catalog.json"
    path.write_text(text)
    with pytest.raises(CatalogueInvalid):
        Catalogue.load(extra_files=[path])
    with pytest.raises(CatalogueInvalid):
        Catalogue.load(path)
    path.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(CatalogueInvalid):
        Catalogue.load(extra_files=[path])


def test_missing_catalogue_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CatalogueInvalid, match=r"nowhere\.json"):
        Catalogue.load(extra_files=[tmp_path / "nowhere.json"])


def test_two_files_may_not_give_one_name_twice(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{i}.json", ENTRY) for i in range(2)]
    with pytest.raises(CatalogueInvalid, match=r"1\.json.*entry 0.*already has"):
        Catalogue.load(extra_files=paths)


def test_catalogue_imports_no_torch() -> None:
    code = (
        "import sys, models_cache.weights_bundle as b; b.Catalogue.load();"
        "sys.exit(any(m in sys.modules for m in ('torch', 'torchvision')))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


@pytest.mark.shared
def test_shared_catalogue_is_read(shared: Path) -> None:
    catalogue = Catalogue.load(extra_files=[shared / "weights" / "catalog.json"])
    info = catalogue.weights("squeezenet1_1", "IMAGENET1K_PORT")
    assert info.file == "squeezenet1_1-3d0b3737.pth"
    assert not info.has_head


def test_snapshot_equals_the_installed_torchvision() -> None:
    snapshot = pytest.importorskip("models_cache.snapshot")
    path = installed_snapshot()
    then = {info.architecture: info.as_json() for info in read_snapshot(path)}
    now = {
        name: snapshot.describe(name, then.get(name, {}).get("activation_bytes")).as_json()
        for name in snapshot.backbones.architectures()
    }
    version = ".".join(metadata.version("torchvision").split(".")[:2])
    if path.name == f"catalogue_torchvision_{version}.json":
        assert then == json.loads(json.dumps(now))
        return
    # Another version: what both know must agree where it decides about bytes and shapes.
    shared_names = then.keys() & now.keys()
    assert shared_names >= then.keys()  # torchvision drops no builder
    for name in shared_names:
        for field in ("feature_width", "parameters", "family"):
            assert then[name][field] == now[name][field], name
        files = {w["name"]: w["file"] for w in now[name]["weights"]}
        for weights in then[name]["weights"]:
            assert files.get(weights["name"], weights["file"]) == weights["file"]


@pytest.mark.parametrize("architecture", ["mobilenet_v2", "regnet_x_400mf", "vit_b_32"])
def test_snapshot_knows_what_a_network_keeps_of_an_image(architecture: str) -> None:
    activations = pytest.importorskip("models_cache.activations")
    then = Catalogue.load().backbone(architecture).activation_bytes
    assert activations.activation_bytes(architecture, ACTIVATIONS_PX) == pytest.approx(then, 0.1)


def test_newest_snapshot_serves_a_torchvision_that_has_none() -> None:
    newest = max(SNAPSHOTS.glob("catalogue_torchvision_*.json"))
    assert snapshot_for("99.1.0+cpu") == snapshot_for("") == newest
    assert snapshot_for("0.29.0").name == "catalogue_torchvision_0.29.json"
