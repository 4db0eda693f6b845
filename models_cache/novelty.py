"""How unlike the known images an image is: the part of its features that they do not span.

Features are scaled to length 1 and centred; what is left of them outside the principal axes of
the known images is their novelty. Images of another kind have more of it, whatever label their
logits suggest. Chosen by measurement against nearest neighbours, energy and others
(`docs/experiments.md`); it also needs the fewest numbers, and a thousand models are in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

_Value = TypeVar("_Value")

AXES = 32
_IMAGES_PER_AXIS = 4  # at least
FEWEST_IMAGES = 20  # below, axes and ranks would be noise: no score at all
MOST_IMAGES = 1000  # that axes are fitted on; decomposing more costs seconds and changes little
_PIECE = 512  # rows of axes that are widened at a time
_SHORTEST = 1e-12  # length of features that counts: as torch normalises
_PACKED_NOVELTY = 0.2  # median of known images from which on 8 bits do: pretrained ones have 0.5
_LARGEST_LEAN = 0.01  # of axes that are called orthonormal
FALSE_ALARMS = 0.02  # of images like the known ones, at most, are called out of distribution


@dataclass(frozen=True, eq=False)
class Familiarity:
    """The known images, as far as judging a new one needs them.

    Args:
        centre: Mean of their scaled features, float32 `[D]`.
        axes: Principal axes, float16 `[D, R]`, orthonormal columns.
        novelties: What known images themselves are off the axes of others, float32 `[K]`,
            ascending.
    """

    centre: NDArray[np.float32]
    axes: NDArray[np.float16]
    novelties: NDArray[np.float32]

    @property
    def nbytes(self) -> int:
        """Memory it takes."""
        return self.centre.nbytes + self.axes.nbytes + self.novelties.nbytes

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays of `familiarity.safetensors` by name."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[Any]]) -> Familiarity:
        """Rebuild from `arrays`'s form, checked when the artifact was."""
        return cls(**{name: arrays[name] for name in cls.__dataclass_fields__})


@dataclass(frozen=True, eq=False)
class PackedFamiliarity:
    """A `Familiarity` in half the memory: axes in 8 bits, made orthonormal again.

    Args:
        centre: As there.
        axes: int8 `[D, R]`; their product with `mixing` are orthonormal columns.
        mixing: float32 `[R, R]`.
        novelties: As there.
    """

    centre: NDArray[np.float32]
    axes: NDArray[np.int8]
    mixing: NDArray[np.float32]
    novelties: NDArray[np.float32]

    @property
    def nbytes(self) -> int:
        """Memory it takes."""
        arrays = (self.centre, self.axes, self.mixing, self.novelties)
        return sum(array.nbytes for array in arrays)


def packed(known: Familiarity) -> Familiarity | PackedFamiliarity:
    """Return what serving keeps in memory: 8 bits where scores stay within 0.02, else `known`.

    Rounded axes lean by about a hundredth. That is seen where known images are nearly spanned by
    their axes, as with a network that has learned them by heart: these keep their 16 bits.
    """
    axes = known.axes.astype(np.float32)
    if axes.shape[1] > AXES:  # of an artifact that another program made
        return known
    lean = np.abs(axes.T @ axes - np.eye(axes.shape[1], dtype=np.float32)).max()
    if lean > _LARGEST_LEAN or known.novelties[len(known.novelties) // 2] < _PACKED_NOVELTY:
        return known
    steps = np.abs(axes).max(axis=0) / 127
    rounded = np.rint(axes / steps)
    scaled = rounded * steps
    straight = np.linalg.inv(np.linalg.cholesky(scaled.T @ scaled)).T
    mixing = (steps[:, None] * straight).astype(np.float32)
    return PackedFamiliarity(known.centre, rounded.astype(np.int8), mixing, known.novelties)


def judge(
    known: Sequence[Familiarity | PackedFamiliarity], features: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Judge images by their raw features, each against the known images of its own model.

    Args:
        known: What each image is compared with, B of them; equal ones are best neighbours.
        features: `[B, D]`.

    Returns:
        Scores `[B]`: the fraction of the known images that are less unusual. And `[B]`: whether
        an image is out of distribution, that is, whether so few known ones are as unusual that
        for an image like them the chance is at most `FALSE_ALARMS`.

    Source:
        Rank as in Bates et al. 2023, arXiv:2104.08279 (conformal p-values).
    """
    rows = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), _SHORTEST)
    less, count = np.empty(len(rows)), np.empty(len(rows))
    for each, own in runs(known):
        novelty = _novelty(rows[own], each)
        less[own], count[own] = np.searchsorted(each.novelties, novelty), len(each.novelties)
    return less / count, (1 + count - less) / (1 + count) <= FALSE_ALARMS


def runs(values: Sequence[_Value]) -> Iterator[tuple[_Value, slice]]:
    """Yield each run of identical neighbours with its place."""
    start = 0
    for end in range(1, len(values) + 1):
        if end == len(values) or values[end] is not values[start]:
            yield values[start], slice(start, end)
            start = end


def _novelty(
    rows: NDArray[np.float32], known: Familiarity | PackedFamiliarity
) -> NDArray[np.float32]:
    """Return the length `[B]` of what features of length 1 have off the axes."""
    centred = rows - known.centre
    spanned = np.zeros((len(rows), known.axes.shape[1]), np.float32)
    for start in range(0, len(known.axes), _PIECE):
        piece = slice(start, start + _PIECE)
        # torch widens 16 bits in 7 us where NumPy takes 54 and more, and so small a piece alone
        spanned += centred[:, piece] @ torch.from_numpy(known.axes[piece]).float().numpy()
    if isinstance(known, PackedFamiliarity):
        spanned @= known.mixing
    off = np.square(centred).sum(axis=1) - np.square(spanned).sum(axis=1)
    length: NDArray[np.float32] = np.sqrt(np.maximum(off, 0))
    return length


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep torch to one thread: on small matrices several mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@_one_thread()
def fit_familiarity(features: Tensor, folds: Tensor) -> Familiarity | None:
    """Learn what known images look like; None for fewer than `FEWEST_IMAGES` images.

    Gives the same bits whatever torch's number of threads.

    Args:
        features: Raw features of images, float32 `[N, D]`. Deterministic: of more than
            `MOST_IMAGES` every n-th is taken.
        folds: Fold of each image, int64 `[N]`, copies in one fold: an image's own novelty is
            taken from axes that it was not part of.

    Source:
        Wang et al. 2022, arXiv:2203.10807, section 4.1 (the residual of ViM, centred at the
        mean); length 1 as in Sun et al. 2022, arXiv:2204.06507.
    """
    step = -(-len(features) // MOST_IMAGES)
    features, folds = features[::step], folds[::step]
    if len(features) < FEWEST_IMAGES:
        return None
    rows = F.normalize(features)
    products = (rows @ rows.T).double()  # [N, N]: all that the folds need to know of the images
    own = torch.empty(len(rows))
    for fold in folds.unique():
        out = folds == fold
        if out.all():
            return None  # copies of one image
        own[out] = _novelty_by_products(products, out, ~out).float()
    centre = rows.mean(dim=0)
    axes = (rows - centre).T @ _directions(_centred(products)).float()  # [D, R]
    return Familiarity(centre.numpy(), axes.half().numpy(), own.sort().values.numpy())


def _novelty_by_products(products: Tensor, out: Tensor, known: Tensor) -> Tensor:
    """Return the novelty of some rows by the centre and axes of others, from inner products."""
    inner, across = products[known][:, known], products[out][:, known]  # [A, A], [B, A]
    length = 1 - 2 * across.mean(dim=1) + inner.mean()
    across = across - across.mean(dim=1, keepdim=True) - inner.mean(dim=0) + inner.mean()
    spanned = (across @ _directions(_centred(inner))).square().sum(dim=1)
    return (length - spanned).clamp_min(0).sqrt()


def _centred(products: Tensor) -> Tensor:
    """Return the inner products of rows after their mean is taken off."""
    means = products.mean(dim=0)
    return products - means - means[:, None] + means.mean()


def _directions(products: Tensor) -> Tensor:
    """Return what makes unit axes of centred rows, float64 `[N, R]`, from their products."""
    count = max(1, min(AXES, len(products) // _IMAGES_PER_AXIS))
    # The first axes are far above float32's noise, and it takes two thirds of the time
    values, vectors = torch.linalg.eigh(products.float())
    directions: Tensor = (vectors[:, -count:] / values[-count:].clamp_min(1e-6).sqrt()).double()
    return directions
