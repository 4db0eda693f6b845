"""Whether the memory that is free lets a training start beside what runs.

Trainings of several slots share a host and perhaps a GPU. One that would not fit beside the others
waits in the queue, those behind it too: they could keep it waiting for ever. One that can never
fit starts once nothing of ours runs, with a warning, since an estimate may be wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from jobs.memory import Memory

_MIB = 1 << 20
_PROCESS_BYTES = 1024 * _MIB  # torch and its libraries, pixels mapped from disk
_CONTEXT_BYTES = 600 * _MIB  # of CUDA and its libraries, on the GPU
_BYTES_PER_NUMBER = 4
_COPIES_TRAINED = 6  # values, gradients, two moments of AdamW, the best ones, one being saved
_COPIES_FROZEN = 2
# On what the backward pass needs: gradients on their way, and gaps between freed activations.
_ACTIVATIONS_MARGIN = 1.6
_IMAGE_FROZEN_BYTES = 16 * _MIB
_DEFAULT_BATCH = 32  # of every recipe
_MARGIN = 1.1  # on what earlier jobs took
_REMEMBERED = 3  # newest jobs of the same kind whose peaks count


@dataclass(frozen=True)
class Need:
    """The memory that a training takes at its peak.

    Args:
        host_bytes: Of the host.
        device_bytes: Of its GPU; 0 on a CPU.
        measured: Whether earlier jobs of the kind took that, or it is estimated.
    """

    host_bytes: int
    device_bytes: int
    measured: bool = False


@dataclass(frozen=True)
class NetworkSize:
    """What is known of a network before it runs.

    Args:
        parameters: Their number.
        image_bytes: What the backward pass of one image needs besides them, float32.
    """

    parameters: int
    image_bytes: int


_UNKNOWN = NetworkSize(50_000_000, 100 * _MIB)


class Verdict(Enum):
    """What becomes of a job that is next in the queue."""

    START = "start"
    #: It does not fit, and nothing that we could wait for would change that.
    START_ALONE = "start-alone"
    #: It would fit if less ran, or if other programs took less.
    WAIT = "wait"


def judge(need_bytes: int, memory: Memory | None, running_bytes: Sequence[int]) -> Verdict:
    """Decide over one kind of memory.

    Args:
        need_bytes: What the job takes at its peak.
        memory: What there is; None if unknown, which stops nobody.
        running_bytes: What our running trainings there take at their peaks; they may not have
            reached them yet.
    """
    if memory is None or need_bytes == 0:
        return Verdict.START
    fits_beside = need_bytes + sum(running_bytes) <= memory.total_bytes
    if fits_beside and need_bytes <= memory.available_bytes:
        return Verdict.START
    if running_bytes or need_bytes <= memory.total_bytes:
        return Verdict.WAIT
    return Verdict.START_ALONE


def kind_of(spec: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what jobs of about the same peak have in common."""
    parameters = spec.get("parameters", {})
    chosen = (parameters.get("batch_size"), parameters.get("tune"))
    raced = tuple(entrant["architecture"] for entrant in spec.get("entrants", ()))
    return (str(spec.get("backbone")), raced, spec.get("recipe"), *chosen)


def need_of(
    spec: Mapping[str, Any],
    earlier: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]],
    network: NetworkSize | None,
    on_gpu: bool,
) -> Need:
    """Return the peak of a job: as earlier jobs of its kind had it, or else a rough estimate.

    Args:
        spec: Of the job.
        earlier: Specs and resources of jobs that succeeded, newest first.
        network: Its size; None if unknown.
        on_gpu: Whether it computes on a GPU.
    """
    alike = [resources for other, resources in earlier if kind_of(other) == kind_of(spec)]
    peaks = [_peak(resources) for resources in alike if "peak_memory_bytes" in resources]
    peaks = [peak for peak in peaks if (peak.device_bytes > 0) == on_gpu][:_REMEMBERED]
    if peaks:
        host_bytes = int(_MARGIN * max(peak.host_bytes for peak in peaks))
        device_bytes = int(_MARGIN * max(peak.device_bytes for peak in peaks))
        return Need(host_bytes, device_bytes, measured=True)
    return _estimated(spec, network or _UNKNOWN, on_gpu)


def _peak(resources: Mapping[str, Any]) -> Need:
    # A device's peak is of torch's own memory; the context comes on top
    device_bytes = resources.get("peak_device_memory_bytes") or 0
    context_bytes = _CONTEXT_BYTES if device_bytes else 0
    return Need(resources["peak_memory_bytes"], device_bytes + context_bytes)


def _estimated(spec: Mapping[str, Any], network: NetworkSize, on_gpu: bool) -> Need:
    trained = spec.get("recipe", "head") != "head"
    copies = _COPIES_TRAINED if trained else _COPIES_FROZEN
    image_bytes = _IMAGE_FROZEN_BYTES
    if trained:
        image_bytes = int(_ACTIVATIONS_MARGIN * network.image_bytes)
    batch_size = spec.get("parameters", {}).get("batch_size", _DEFAULT_BATCH)
    network_bytes = network.parameters * _BYTES_PER_NUMBER * copies + batch_size * image_bytes
    if on_gpu:
        return Need(2 * _PROCESS_BYTES, _CONTEXT_BYTES + network_bytes)
    return Need(_PROCESS_BYTES + network_bytes, 0)
