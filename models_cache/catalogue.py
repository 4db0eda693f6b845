"""What backbones and pretrained weights there are, known without torch.

The facts come from a JSON snapshot per torchvision version, made by `models_cache.snapshot` and
compared with the real library in the tests, plus the user's own weights catalogue files
(`models_cache.catalogue_files`). The api process reads nothing else.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from models_cache.catalogue_files import CatalogueEntry, read_catalogue_file
from models_cache.preprocessing import Preprocessing
from models_cache.weights_errors import (
    BackboneUnknown,
    CatalogueInvalid,
    WeightsUnknown,
    WeightsUnusable,
)

DEFAULT = "DEFAULT"
SNAPSHOT_FORMAT = 1
ACTIVATIONS_PX = 224  # side of the image whose activations are counted
_SNAPSHOT_FOLDER = Path(__file__).parent
_SNAPSHOT_NAME = re.compile(r"catalogue_torchvision_(\d+)\.(\d+)\.json")

Origin = Literal["torchvision", "catalogue"]


@dataclass(frozen=True)
class WeightsInfo:
    """One file of pretrained weights of one architecture.

    Args:
        architecture: The torchvision builder that makes the network.
        name: `IMAGENET1K_V1` and the like; unique per architecture.
        file: Plain file name, as in the vault.
        url: The official address; None for a user's catalogue entry.
        sha256: Full hash, 64 hex digits, if a catalogue file says it.
        sha256_prefix: First hex digits (8 or more) of the hash, from the official file name.
        has_head: Whether the file holds the classifier too (it is dropped when loaded).
        preprocessing: What the weights expect of an image.
        license: SPDX identifier or the catalogue's words.
        source: Where the weights come from: the training recipe or the catalogue's words.
        parameters: Count, with the classifier.
        gflops: Of one forward pass of one image at the weights' own size.
        size_bytes: Of the file; about 1 KiB off for official files.
        accuracy_top1: On ImageNet-1K, a fraction.
        accuracy_top5: On ImageNet-1K, a fraction.
        usable: False where the file cannot give pooled features (values are missing in it).
        origin: Who named it: torchvision or a user's catalogue file.
        catalogue_folder: The folder of that catalogue file, where the weights are looked for first.
    """

    architecture: str
    name: str
    file: str
    preprocessing: Preprocessing
    license: str
    source: str
    url: str | None = None
    sha256: str | None = None
    sha256_prefix: str | None = None
    has_head: bool = True
    parameters: int | None = None
    gflops: float | None = None
    size_bytes: int | None = None
    accuracy_top1: float | None = None
    accuracy_top5: float | None = None
    usable: bool = True
    origin: Origin = "torchvision"
    catalogue_folder: Path | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the JSON form: every field but the local folder; `from_json` reads it."""
        value = asdict(self) | {"preprocessing": self.preprocessing.as_json()}
        del value["catalogue_folder"]
        return value

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> WeightsInfo:
        """Rebuild from `as_json`'s form."""
        return cls(**value | {"preprocessing": Preprocessing.from_json(value["preprocessing"])})


@dataclass(frozen=True)
class BackboneInfo:
    """One architecture that torchvision builds.

    Args:
        architecture: The builder's name, as in `torchvision.models.get_model`.
        family: The torchvision module that holds the builder.
        feature_width: Length D of the pooled features `[B, D]`.
        parameters: Count, without the classifier.
        activation_bytes: What the backward pass of an image of `ACTIVATIONS_PX` needs, float32,
            without parameters.
        smallest_input_px: Smallest side of a square image it can sensibly take.
        fixed_input: Whether a built network takes images of one size only.
        default: Name of torchvision's best weights, else of the catalogue's first.
        weights: Torchvision's in its order, then those of catalogue files in theirs.
    """

    architecture: str
    family: str
    feature_width: int
    parameters: int
    activation_bytes: int
    smallest_input_px: int
    fixed_input: bool
    default: str | None  # None: no weights at all
    weights: tuple[WeightsInfo, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the JSON form; `from_json` reads it."""
        return {
            **{name: getattr(self, name) for name in self.__dataclass_fields__},
            "weights": [info.as_json() for info in self.weights],
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> BackboneInfo:
        """Rebuild from `as_json`'s form."""
        return cls(**value | {"weights": tuple(map(WeightsInfo.from_json, value["weights"]))})


class Catalogue:
    """All backbones by architecture; immutable once loaded.

    Args:
        backbones: One item per architecture.
    """

    def __init__(self, backbones: Iterable[BackboneInfo]) -> None:
        self._backbones = {info.architecture: info for info in backbones}

    @classmethod
    def load(cls, snapshot_path: Path | None = None, extra_files: Sequence[Path] = ()) -> Catalogue:
        """Read a snapshot and the user's catalogue files.

        Args:
            snapshot_path: The snapshot; None for the one of the installed torchvision.
            extra_files: Weights catalogue files (`GRAFT_WEIGHTS_CATALOG`), first one first.

        Raises:
            CatalogueInvalid: A file cannot be used; the sentence names entry and reason.
        """
        catalogue = cls(read_snapshot(snapshot_path or installed_snapshot()))
        for path in extra_files:
            catalogue = catalogue._with_entries(path, read_catalogue_file(path))
        return catalogue

    def architectures(self) -> list[BackboneInfo]:
        """Return every backbone, sorted by name."""
        return [self._backbones[name] for name in sorted(self._backbones)]

    def backbone(self, architecture: str) -> BackboneInfo:
        """Return one backbone.

        Raises:
            BackboneUnknown: There is none of that name; the sentence offers close ones.
        """
        if (info := self._backbones.get(architecture)) is not None:
            return info
        close = difflib.get_close_matches(architecture, sorted(self._backbones), n=3, cutoff=0.5)
        raise BackboneUnknown(architecture[:100], ", ".join(close) or "none")

    def candidates(
        self,
        architecture: str,
        name: str = DEFAULT,
        *,
        have: Callable[[WeightsInfo], bool] = lambda _: False,
    ) -> tuple[WeightsInfo, ...]:
        """Return the weights to try, in order: the first that can be had is the choice.

        A name means that entry only. `DEFAULT` means torchvision's default, then the first entry
        of the catalogue files; the second is left out if the first is at hand already.

        Args:
            architecture: A name of this catalogue.
            name: Of the weights, or `DEFAULT`.
            have: Whether the vault holds a verified copy.

        Raises:
            BackboneUnknown: No such architecture.
            WeightsUnknown: No such weights, or none at all.
            WeightsUnusable: They exist but hold no complete network.
        """
        backbone = self.backbone(architecture)
        if name != DEFAULT:
            return (_named(backbone, name),)
        official = [w for w in backbone.weights if w.name == backbone.default]
        own = [w for w in backbone.weights if w.origin == "catalogue"]
        ordered = tuple(dict.fromkeys(official + own[:1]))
        if not ordered:
            raise WeightsUnknown(architecture, name, "none, use recipe `scratch`")
        return ordered[:1] if have(ordered[0]) else ordered

    def weights(
        self,
        architecture: str,
        name: str = DEFAULT,
        *,
        have: Callable[[WeightsInfo], bool] = lambda _: False,
    ) -> WeightsInfo:
        """Return the weights that `name` means now: the first candidate at hand, else the first.

        Raises:
            As `candidates`.
        """
        ordered = self.candidates(architecture, name, have=have)
        return next((info for info in ordered if have(info)), ordered[0])

    def _with_entries(self, path: Path, entries: Sequence[CatalogueEntry]) -> Catalogue:
        merged = dict(self._backbones)
        known = {w.file: w for backbone in merged.values() for w in backbone.weights}
        for index, entry in enumerate(entries):
            reason = _clash(entry, merged.get(entry.architecture), known.get(entry.file))
            if reason is None and entry.architecture not in merged:
                close = difflib.get_close_matches(entry.architecture, sorted(merged), n=3)
                reason = f"torchvision builds no {entry.architecture!r}; close names: {close}"
            if reason is not None:
                raise CatalogueInvalid(str(path), f"entry {index}: {reason}")
            info = known[entry.file] = _info_of(entry, path.parent)
            old = merged[entry.architecture]
            merged[entry.architecture] = replace(
                old, weights=(*old.weights, info), default=old.default or info.name
            )
        return Catalogue(merged.values())


def installed_snapshot() -> Path:
    """Return the snapshot for the installed torchvision, whose version is read, not imported."""
    try:
        return snapshot_for(metadata.version("torchvision"))
    except metadata.PackageNotFoundError:
        return snapshot_for("")


def snapshot_for(version: str) -> Path:
    """Return the snapshot of a torchvision version such as `0.29.1+cpu`, else the newest one."""
    snapshots = {
        (int(match[1]), int(match[2])): path
        for path in _SNAPSHOT_FOLDER.glob("catalogue_torchvision_*.json")
        if (match := _SNAPSHOT_NAME.fullmatch(path.name))
    }
    wanted = re.match(r"(\d+)\.(\d+)", version)
    key = (int(wanted[1]), int(wanted[2])) if wanted else (0, 0)
    return snapshots.get(key, snapshots[max(snapshots)])


def read_snapshot(path: Path) -> list[BackboneInfo]:
    """Read a snapshot file.

    Raises:
        CatalogueInvalid: It is missing, damaged or of another format.
    """
    try:
        value = json.loads(path.read_bytes())
        if value["format"] != SNAPSHOT_FORMAT:
            raise CatalogueInvalid(str(path), f"format {value['format']} is not known")
        return [BackboneInfo.from_json(item) for item in value["backbones"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CatalogueInvalid(str(path), f"{type(error).__name__}: {error}") from error


def _named(backbone: BackboneInfo, name: str) -> WeightsInfo:
    for info in backbone.weights:
        if info.name == name:
            if not info.usable:
                raise WeightsUnusable(backbone.architecture, name)
            return info
    known = ", ".join(w.name for w in backbone.weights if w.usable) or "none"
    raise WeightsUnknown(backbone.architecture, name[:100], known)


def _clash(
    entry: CatalogueEntry, backbone: BackboneInfo | None, same_file: WeightsInfo | None
) -> str | None:
    """Say why an entry cannot stand beside what is known already; None if it can."""
    if backbone is not None and any(entry.name == w.name for w in backbone.weights):
        return f"{entry.architecture} already has weights {entry.name!r}"
    if same_file is None:
        return None
    expected = same_file.sha256 or same_file.sha256_prefix or ""
    if not entry.sha256.startswith(expected):
        return f"file {entry.file!r} is already known with another sha256 ({expected}...)"
    return None


def _info_of(entry: CatalogueEntry, folder: Path) -> WeightsInfo:
    return WeightsInfo(
        architecture=entry.architecture,
        name=entry.name,
        file=entry.file,
        preprocessing=entry.preprocessing,
        license=entry.license,
        source=entry.source,
        sha256=entry.sha256,
        has_head=entry.head,
        origin="catalogue",
        catalogue_folder=folder,
    )
