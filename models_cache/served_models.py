"""What serving has in memory: heads, and the backbones that they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from models_cache.artifacts import Artifact
from models_cache.engines import Engine
from models_cache.novelty import Familiarity, PackedFamiliarity
from models_cache.preprocessing import Preprocessing

#: One image as a model wants it, `[crop, crop, 3]`, 0 to 255; float32 if a client preprocessed it.
Pixels = NDArray[np.uint8] | NDArray[np.float32]


@dataclass(frozen=True)
class BackboneKey:
    """What must be equal for two artifacts to share one backbone.

    Args:
        architecture: Name in the catalogue.
        sha256: Of the file that holds the backbone's tensors.
        preprocessing_digest: Of the preprocessing, since a batch is normalised as one.
        artifact: One of those that share it, to load it by; no part of the key.
        boundary: Where a trunk ends; empty for a whole backbone.
    """

    architecture: str
    sha256: str
    preprocessing_digest: str
    artifact: Artifact = field(compare=False, repr=False)
    boundary: str = ""


@dataclass(frozen=True, eq=False)
class LoadedHead:
    """An artifact's linear layer, `[B, D]` -> `[B, C]`.

    It stays on the CPU: a batch comes back from the device once, not once per head.

    Args:
        artifact: What it was loaded from.
        backbone_key: Of what gives its input.
        weight: float32 `[C, D]`.
        bias: float32 `[C]`.
        familiarity: None where the artifact does not say what known images look like.
    """

    artifact: Artifact
    backbone_key: BackboneKey
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    familiarity: Familiarity | PackedFamiliarity | None

    @property
    def temperature(self) -> float:
        """What logits are divided by before they become scores."""
        calibration = self.artifact.facts.calibration
        return 1.0 if calibration is None else calibration.temperature

    @property
    def nbytes(self) -> int:
        """Memory it takes."""
        familiar_bytes = 0 if self.familiarity is None else self.familiarity.nbytes
        return self.weight.nbytes + self.bias.nbytes + familiar_bytes


@dataclass(frozen=True, eq=False)
class Trunk:
    """The first stages of backbones that were tuned behind them only.

    Args:
        key: What images of all of them are batched by.
        engine: Gives the activations `[B, ...]` that their own stages take.
    """

    key: BackboneKey
    engine: Engine


@dataclass(frozen=True, eq=False)
class LoadedBackbone:
    """What gives features, and what it makes of the golden images: a head is checked by these.

    Args:
        engine: What runs it, or with a trunk what follows that.
        golden_images: uint8 `[G, crop, crop, 3]`.
        golden_features: float32 `[G, D]`.
        wanted_engine: What to build, as a job is told it, if a faster engine has not been.
        trunk: The stages that it shares with others; None if it is all its own.
    """

    engine: Engine
    golden_images: Pixels
    golden_features: Tensor
    wanted_engine: dict[str, Any] | None
    trunk: Trunk | None = None

    @property
    def nbytes(self) -> int:
        """Memory that is its own."""
        return self.engine.size_bytes + self.golden_images.nbytes + self.golden_features.nbytes


@dataclass(frozen=True, eq=False)
class Model:
    """A head with its backbone, both in memory for as long as the model is pinned."""

    head: LoadedHead
    backbone: LoadedBackbone

    @property
    def backbone_key(self) -> BackboneKey:
        """The key that images of this model are batched by."""
        trunk = self.backbone.trunk
        return self.head.backbone_key if trunk is None else trunk.key

    @property
    def classes(self) -> Sequence[str]:
        """Names of the C classes, in the order of the scores."""
        return self.head.artifact.facts.classes

    @property
    def thresholds(self) -> Sequence[float] | None:
        """Score from which on each class is a label; None if the likeliest is the answer."""
        return self.head.artifact.facts.thresholds

    @property
    def preprocessing(self) -> Preprocessing:
        """What makes an image this model's input."""
        return self.head.artifact.facts.preprocessing
