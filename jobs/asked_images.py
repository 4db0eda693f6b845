"""What a served model says of the images of a data set, batch after batch.

The same predictor as in serving, in a child with the priority of a training. Images are decoded by
threads while the batch before them is computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jobs.datasets.manifest import ImageEntry
from jobs.training.device import set_up
from models_cache.answers import ImageOutput, QueuedImage
from models_cache.blobs import BlobStore
from models_cache.decode import ImageLimits
from models_cache.devices import choose_device
from models_cache.errors import GraftError, ImageError
from models_cache.predictor import Predictor
from models_cache.served_models import Model, Pixels

_BATCH_IMAGES = 32
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

    def answers(
        self, model: Model, images: Sequence[ImageEntry]
    ) -> Iterator[list[tuple[ImageEntry, Answer]]]:
        """Yield batches of images, each with its answer or why it has none, in their order.

        Args:
            model: Pinned for as long as this runs.
            images: Of any number.
        """

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
