"""Whose classes are whose: those of a model and of a data set are matched by name.

What a model does not know it cannot be right about: with one label per image, images of such a
class are set aside and reported on their own; with several, an image is judged by the labels that
the model knows. A class that the data set lacks stays what it is to whoever asks the model: an
answer, here always a wrong one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from jobs.datasets.manifest import ImageEntry


@dataclass(frozen=True)
class ClassMatch:
    """The C classes of a model beside those of a data set.

    Args:
        model: Names in the model's order.
        dataset: Names in the data set's order.
    """

    model: Sequence[str]
    dataset: Sequence[str]

    @property
    def unknown(self) -> list[str]:
        """Classes of the data set that the model lacks."""
        return [name for name in self.dataset if name not in self._index]

    @property
    def absent(self) -> list[str]:
        """Classes of the model that the data set lacks."""
        there = set(self.dataset)
        return [name for name in self.model if name not in there]

    def knows(self, image: ImageEntry) -> bool:
        """Tell whether the model has every class of an image."""
        return not self.unknown_of(image)

    def unknown_of(self, image: ImageEntry) -> list[str]:
        """Return the classes of an image that the model lacks."""
        names = [self.dataset[label] for label in image.labels]
        return [name for name in names if name not in self._index]

    def indices(self, images: Sequence[ImageEntry]) -> NDArray[np.int64]:
        """Return the model's index of each image's one class, which it has, int64 `[N]`."""
        classes = [self._index[self.dataset[image.labels[0]]] for image in images]
        return np.array(classes, np.int64)

    def flags(self, images: Sequence[ImageEntry]) -> NDArray[np.float32]:
        """Return which of the model's classes each image has, 0 or 1, float32 `[N, C]`."""
        found = np.zeros((len(images), len(self.model)), np.float32)
        for row, image in enumerate(images):
            names = [self.dataset[label] for label in image.labels]
            found[row, [self._index[name] for name in names if name in self._index]] = 1
        return found

    @cached_property
    def _index(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.model)}
