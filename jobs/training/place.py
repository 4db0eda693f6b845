"""Where an attempt works: its folders, its device, and how it says what it is doing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from jobs.errors import OutOfMemory
from jobs.progress import ProgressWriter
from jobs.training.checkpoint import Checkpoint, Checkpoints
from jobs.training.device import Numerics, set_up
from jobs.training.interruption import Interruption
from jobs.training.rates import RatesFolder
from jobs.training.spec import TrainSpec
from models_cache.blobs import BlobStore
from models_cache.devices import choose_device
from models_cache.engine_store import EngineStore
from models_cache.feature_cache import FeatureCache
from models_cache.features import is_out_of_memory
from models_cache.pixels import PixelCache

_DEFAULT_BATCH = 32  # of every recipe


@dataclass(frozen=True)
class Place:
    """What the phases of an attempt share.

    Args:
        spec: What the child was told.
        progress: Where its lines go.
        interruption: Asked between batches and steps whether to go on.
        device: Where it computes.
        numerics: What decides the last bits of its result.
        checkpoint: The newest valid one of this job, if any; not yet compared with the recipe.
    """

    spec: TrainSpec
    progress: ProgressWriter
    interruption: Interruption
    device: torch.device
    numerics: Numerics
    checkpoint: Checkpoint | None

    @classmethod
    def of(cls, spec: TrainSpec, progress: ProgressWriter, interruption: Interruption) -> Place:
        """Choose the device and fix the number of threads before anything runs."""
        checkpoint = Checkpoints(spec.run_folder / "checkpoints").newest()
        # With another number of threads the sums, and so the weights, would be others.
        threads = spec.threads if checkpoint is None else int(checkpoint.facts["threads"])
        interruption.has_model = checkpoint is not None and (
            spec.recipe != "scratch" or checkpoint.facts["compared_step"] > 0
        )
        device = choose_device(spec.device)
        return cls(spec, progress, interruption, device, set_up(device, threads), checkpoint)

    @property
    def training_dtype(self) -> torch.dtype:
        """Type of forward passes that are learned from."""
        dtype: torch.dtype = getattr(torch, self.numerics.training_dtype)
        return dtype

    @property
    def blobs(self) -> BlobStore:
        """Immutable files: images, manifests, artifacts."""
        return BlobStore(self.spec.data_folder / "blobs")

    @property
    def pixels(self) -> PixelCache:
        """Packed pixels."""
        return PixelCache(self.spec.data_folder / "cache" / "pixels")

    @property
    def features(self) -> FeatureCache:
        """Cached features."""
        return FeatureCache(self.spec.data_folder / "cache" / "features")

    @property
    def engines(self) -> EngineStore:
        """Engines built for the next job."""
        return EngineStore(self.spec.data_folder / "cache" / "engines")

    @property
    def rates(self) -> RatesFolder:
        """How fast earlier jobs were."""
        return RatesFolder(self.spec.data_folder / "cache" / "rates")

    @property
    def checkpoints(self) -> Checkpoints:
        """The job's checkpoints."""
        return Checkpoints(self.spec.run_folder / "checkpoints")

    def begin(self, phase: str) -> None:
        """Begin a phase, unless someone asked to stop.

        Raises:
            StoppedOnRequest: SIGTERM arrived.
        """
        self.interruption.phase = phase
        self.interruption.poll()
        self.progress.phase(phase)

    def advance(self, unit: str, done: int, total: int | None) -> None:
        """Report progress, and leave if someone asked to stop."""
        self.progress.progress(unit, done, total)
        self.interruption.poll()

    @contextmanager
    def memory(self) -> Iterator[None]:
        """Say what did not fit where memory runs out inside.

        Raises:
            OutOfMemory: Inside, an allocation failed.
        """
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            batch_size = self.spec.parameters.get("batch_size", _DEFAULT_BATCH)
            raise OutOfMemory(batch_size, str(self.device)) from error
