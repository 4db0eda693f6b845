"""Images as an evaluation takes them: with their targets, what a model says of them, and folds."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from jobs.datasets.manifest import ImageEntry
from jobs.evaluation.judged import JudgedImages
from jobs.training.evaluate import Outputs
from jobs.training.head import assign_folds, strata

_FOLDS = 5  # of the images that calibration is fitted on, where it is also reported on them


def judged_images(
    split: str, images: Sequence[ImageEntry], targets: Tensor, outputs: Outputs
) -> JudgedImages:
    """Return N images with what a model says of them.

    Args:
        split: Which images these are.
        images: In the order of the rows.
        targets: int64 `[N]`; with several labels float32 `[N, C]`, 0 or 1.
        outputs: What the model says.
    """
    return JudgedImages(
        split=split,
        ids=[image.id for image in images],
        targets=targets,
        logits=outputs.logits,
        features=outputs.features,
        folds=assign_folds(strata(targets), [image.sha256 for image in images], _FOLDS),
    )
