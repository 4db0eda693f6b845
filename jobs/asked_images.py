"""What a served model says of the images of a data set, batch after batch, as lines of a file.

The same predictor as in serving, in a child with the priority of a training. Images are decoded by
threads while the batch before them is computed. Each batch is on disk before the next one is asked
for, so that the next attempt goes on behind the last line.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from jobs.datasets.manifest import ImageEntry
from jobs.predictions_file import PredictionsFile
from jobs.progress import ProgressWriter
from jobs.training.device import set_up
from jobs.training.interruption import Interruption
from models_cache.answers import ImageOutput, QueuedImage
from models_cache.blobs import BlobStore
from models_cache.decode import ImageLimits
from models_cache.devices import choose_device
from models_cache.errors import GraftError, ImageError
from models_cache.predictor import Predictor
from models_cache.served_models import Model, Pixels

_BATCH_IMAGES = 32
_CHECKPOINT_SECONDS = 5.0  # between lines that say so; every batch is on disk
_CACHE_BYTES = 1  # one model is in use all the time, nothing else is kept

Answer = ImageOutput | GraftError


class AskedImages:
    """Asks models about stored images.

    Args:
        data_folder: Root of all state.
        device: `auto`, `cpu`, `cuda` or `cuda:<n>`.
        threads: CPU threads of a forward pass, and images decoded at once.
        limits: Images beyond them get an error instead of an answer.
    """

    def __init__(self, data_folder: Path, device: str, threads: int, limits: ImageLimits) -> None:
        self.device = choose_device(device)
        set_up(self.device, threads)
        self.blobs = BlobStore(data_folder / "blobs")
        self.predictor = Predictor(data_folder, self.device, _CACHE_BYTES, limits)
        self._threads = threads

    def answer_into(
        self,
        path: Path,
        model: Model,
        images: Sequence[ImageEntry],
        row_of: Callable[[ImageEntry, Answer], dict[str, Any]],
        told: tuple[ProgressWriter, Interruption],
    ) -> None:
        """Write a line for each image; what an earlier attempt asked is not asked again.

        Args:
            path: The file of lines, of this attempt and those before it.
            model: Pinned for as long as this runs.
            images: All of them.
            row_of: Gives the line of an image and its answer.
            told: Who hears of the progress, and who may stop it.

        Raises:
            StoppedOnRequest: SIGTERM arrived.
            TimeLimitTooShort: The time is over; the lines so far stay.
        """
        progress, interruption = told
        said_at = time.monotonic()
        with PredictionsFile(path, [image.id for image in images]) as file:
            progress.progress("images", file.rows, len(images))
            for batch in self._answers(model, images[file.rows :]):
                file.append(row_of(image, answer) for image, answer in batch)
                progress.progress("images", file.rows, len(images))
                if time.monotonic() - said_at > _CHECKPOINT_SECONDS:
                    progress.checkpoint(file.rows)
                    said_at = time.monotonic()
                interruption.poll()

    def _answers(
        self, model: Model, images: Sequence[ImageEntry]
    ) -> Iterator[list[tuple[ImageEntry, Answer]]]:
        """Yield batches of images, each with its answer or why it has none, in their order."""

        def decoded(image: ImageEntry) -> Pixels | ImageError:
            try:
                return self.predictor.preprocess(model, self.blobs.read(image.sha256))
            except ImageError as error:
                return error

        batches = [images[i : i + _BATCH_IMAGES] for i in range(0, len(images), _BATCH_IMAGES)]
        if not batches:
            return  # an earlier attempt asked about all of them
        with ThreadPoolExecutor(self._threads, "decode") as decoders:
            ahead = [decoders.submit(decoded, image) for image in batches[0]]
            for batch, following in zip(batches, (*batches[1:], ()), strict=True):
                found = [future.result() for future in ahead]
                ahead = [decoders.submit(decoded, image) for image in following]
                yield list(zip(batch, self._said(model, found), strict=True))

    def _said(self, model: Model, found: Sequence[Pixels | ImageError]) -> list[Answer]:
        queued = [QueuedImage(model, item) for item in found if not isinstance(item, ImageError)]
        said = iter(self.predictor.forward(model.backbone_key, queued) if queued else ())
        return [item if isinstance(item, ImageError) else next(said) for item in found]
