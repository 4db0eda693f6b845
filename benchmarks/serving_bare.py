"""The bare loop that serving is compared with: decode, preprocess, forward; no HTTP, no queue.

    python benchmarks/serving_bare.py DATA_FOLDER DIGEST ARCHIVE THREADS

Loads a published model with the engine that serving uses, tries batch sizes and two ways to go
(decode a batch in threads, then run it; or decode the next one while this one runs), and keeps the
fastest. Then each number of seconds on standard input is answered with the images per second and
the processor time of an image, which tells the same on a machine with other work to do.
"""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import cycle
from pathlib import Path

_REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(_REPOSITORY), str(_REPOSITORY / "benchmarks")]

import torch  # noqa: E402 - after the path
from serving_setup import photographs  # noqa: E402

from models_cache.answers import QueuedImage  # noqa: E402
from models_cache.decode import ImageLimits  # noqa: E402
from models_cache.predictor import Predictor  # noqa: E402

_BATCHES = (8, 16, 32)
_TRIAL_SECONDS = 1.5


class BareLoop:
    """One model and its photographs.

    Args:
        data_folder: Of the service.
        digest: The model's artifact.
        images: Encoded.
        threads: Of a forward pass, and images decoded at once.
    """

    def __init__(self, data_folder: Path, digest: str, images: list[bytes], threads: int) -> None:
        torch.set_num_threads(threads)
        cache_bytes = 4 << 30
        self._predictor = Predictor(data_folder, torch.device("cpu"), cache_bytes, ImageLimits())
        self._pinned = self._predictor.pin(digest)
        self._model = self._pinned.value
        self._images = cycle(images)
        self._decoders = ThreadPoolExecutor(threads)
        self.engine = self._model.backbone.engine.name

    def run(self, seconds: float, batch_images: int, *, ahead: bool) -> dict[str, float]:
        """Return the images per second, and the processor time of one."""
        done = 0
        own, started = time.process_time(), time.perf_counter()
        batch = self._decode(batch_images)
        while time.perf_counter() - started < seconds:
            ready = [QueuedImage(self._model, image.result()) for image in batch]
            batch = self._decode(batch_images) if ahead else []
            self._predictor.forward(self._model.backbone_key, ready)
            done += len(ready)
            batch = batch or self._decode(batch_images)
        wall_seconds = time.perf_counter() - started
        for image in batch:
            image.result()
        own_ms = (time.process_time() - own) * 1e3 / done
        return {"images_per_second": done / wall_seconds, "processor_ms_per_image": own_ms}

    def _decode(self, count: int) -> list[Future]:
        decode = self._predictor.preprocess
        return [
            self._decoders.submit(decode, self._model, next(self._images)) for _ in range(count)
        ]


def main() -> None:
    """Find the fastest way, then measure as often as asked."""
    folder, digest, archive, threads = sys.argv[1:]
    loop = BareLoop(Path(folder), digest, photographs(Path(archive)), int(threads))
    loop.run(_TRIAL_SECONDS, 8, ahead=False)
    trials = {
        (batch, ahead): loop.run(_TRIAL_SECONDS, batch, ahead=ahead)["images_per_second"]
        for batch in _BATCHES
        for ahead in (False, True)
    }
    batch, ahead = max(trials, key=lambda way: trials[way])
    print(json.dumps({"engine": loop.engine, "batch": batch, "decodes_ahead": ahead}), flush=True)
    for line in sys.stdin:
        print(json.dumps(loop.run(float(line), batch, ahead=ahead)), flush=True)


if __name__ == "__main__":
    main()
