"""Whether an exported graph gives what is served: the check that every export has to pass.

Drawn images of many sizes go through the serving path (`decode`, `answers`) and through the graph.
Where an image has its size already, nothing is resized and probabilities must agree to 1e-4;
elsewhere to 1e-2, since the two resizes may differ by 1 of 255 in some pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from models_cache.answers import outputs_of
from models_cache.artifacts import Artifact
from models_cache.backbones import Classifier
from models_cache.decode import Pixels, center_crop, resize_shorter_side
from models_cache.engines import EAGER, Engine
from models_cache.errors import GraftError
from models_cache.export_errors import ExportMismatch
from models_cache.export_formats import Run
from models_cache.features import freeze
from models_cache.preprocessing import Preprocessing
from models_cache.served_models import BackboneKey, LoadedHead

TOLERANCE_RESIZED = 1e-4
TOLERANCE_ANY_SIZE = 1e-2
#: Height and width: photographs, odd sides, one side or both smaller than any input, one pixel.
_SIZES_PX = ((375, 500), (500, 333), (1201, 801), (97, 131), (37, 23), (64, 1200), (5, 64), (1, 1))

Probabilities = NDArray[np.float32]  # [C]
Report = Callable[[int, int], None]  # images done, of how many


@dataclass(frozen=True, eq=False)
class CheckImage:
    """One image that both paths are shown.

    Args:
        name: In errors.
        pixels: uint8 `[H, W, 3]`.
        tolerance: Largest difference of a probability.
    """

    name: str
    pixels: Pixels
    tolerance: float


@dataclass(frozen=True)
class Agreement:
    """How far an export is from what is served: largest differences of a probability.

    Args:
        images: How many were compared.
        resized: Of images that have their size already.
        any_size: Of all images.
    """

    images: int
    resized: float
    any_size: float


def check_images(preprocessing: Preprocessing) -> list[CheckImage]:
    """Draw the images: waves, edges and noise; always the same."""
    side_px = preprocessing.resize_px
    resized = [(side_px, side_px), (side_px, side_px * 4 // 3), (side_px * 3 // 2, side_px)]
    tolerances = [TOLERANCE_RESIZED] * len(resized) + [TOLERANCE_ANY_SIZE] * len(_SIZES_PX)
    return [
        CheckImage(f"a drawn image of {width}x{height}", _drawn(height, width), tolerance)
        for (height, width), tolerance in zip((*resized, *_SIZES_PX), tolerances, strict=True)
    ]


def served_probabilities(
    classifier: Classifier, artifact: Artifact, images: Sequence[CheckImage], report: Report
) -> list[Probabilities]:
    """Return what serving says of the images, by the code that serves.

    Args:
        classifier: Of the artifact, on the CPU; put in eval mode and channels-last.
        artifact: The published model.
        images: What to show it.
        report: Called after each.

    Raises:
        ModelUnhealthy: Its outputs are not finite.
    """
    engine = Engine.of(EAGER, freeze(classifier.backbone, torch.device("cpu")))
    key = BackboneKey(*artifact.backbone_key, artifact=artifact)
    weight, bias = (p.detach().numpy() for p in (classifier.head.weight, classifier.head.bias))
    head = LoadedHead(artifact, key, weight, bias, None)
    found = []
    for number, image in enumerate(images, 1):
        found.append(_served(head, engine, image.pixels))
        report(number, len(images))
    return found


def compare_with_served(
    run: Run,
    format_name: str,
    images: Sequence[CheckImage],
    served: Sequence[Probabilities],
    report: Report,
) -> Agreement:
    """Compare a graph with what is served, image by image; the first ones also as one batch.

    Raises:
        ExportMismatch: A probability differs by more than is tolerated.
    """
    largest = {TOLERANCE_RESIZED: 0.0, TOLERANCE_ANY_SIZE: 0.0}
    for number, (image, expected) in enumerate(zip(images, served, strict=True), 1):
        repeats = 2 if number == 1 else 1
        found = run(np.stack([image.pixels] * repeats))
        difference = float(np.abs(found - expected).max())
        if not difference <= image.tolerance:  # also true for NaN
            raise ExportMismatch(format_name, image.name, difference, image.tolerance)
        largest[image.tolerance] = max(largest[image.tolerance], difference)
        report(number, len(images))
    return Agreement(len(images), largest[TOLERANCE_RESIZED], max(largest.values()))


@torch.inference_mode()
def _served(head: LoadedHead, engine: Engine, pixels: Pixels) -> Probabilities:
    facts = head.artifact.facts.preprocessing
    resized = resize_shorter_side(pixels, facts.resize_px, facts.interpolation)
    crop = torch.from_numpy(center_crop(resized, facts.crop_px)[None])  # [1, H, W, 3]
    (outcome,) = outputs_of([head], engine.features(crop, facts).numpy())
    if isinstance(outcome, GraftError):
        raise outcome
    return outcome.scores


def _drawn(height_px: int, width_px: int) -> Pixels:
    generator = np.random.default_rng([height_px, width_px])
    y, x = (np.arange(side)[:, None] / side for side in (height_px, width_px))
    frequency, phase = generator.uniform(1, 12, (2, 3)), generator.uniform(0, 6.3, (2, 3))
    waves = np.sin(6.3 * frequency[0] * y + phase[0])[:, None] * np.sin(
        6.3 * frequency[1] * x + phase[1]
    )
    edges = np.sign(np.sin(40 * y)[:, None] + np.sin(25 * x))
    noise = generator.normal(0, 12, (height_px, width_px, 3))
    pixels: Pixels = np.clip(127.5 + 60 * waves + 40 * edges + noise, 0, 255).astype(np.uint8)
    return pixels
