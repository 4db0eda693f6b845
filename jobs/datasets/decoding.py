"""Decodes many images in a few limited processes; a crash costs one image.

One thread for each process: it sends a path, waits for the answer and hands it over. Answers come
in any order, a few at a time, so that pixels never pile up in memory.
"""

from __future__ import annotations

import fcntl
import json
import os
import queue
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jobs.datasets.decoder import LENGTH, DecoderSpec
from jobs.datasets.limits import IngestLimits
from models_cache.decode import Pixels
from models_cache.preprocessing import Interpolation

_WAITING_ANSWERS = 4
_CHANNELS = 3
_PIPE_BYTES = 1 << 20
_DYING_SECONDS = 5.0  # from a closed pipe to a status; a core dump is switched off
_CLOSING_POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Decoded:
    """An image that could be decoded.

    Args:
        index: Its place in the sequence that was asked for.
        pixels: uint8 `[h, w, 3]`, upright, resized.
        facts: `format`, `animated`, `mode`, `width_px`, `height_px` (upright, before the resize),
            `appearance`, and for a GIF `colours` and `largest_colour_fraction`.
    """

    index: int
    pixels: Pixels
    facts: dict[str, Any]


@dataclass(frozen=True)
class Undecodable:
    """An image that could not be decoded.

    Args:
        index: Its place in the sequence that was asked for.
        code: Of the image error, or `decoder-crash`, `decode-timeout`, `decode-memory`.
        message: For the report.
    """

    index: int
    code: str
    message: str


Outcome = Decoded | Undecodable


@dataclass(frozen=True)
class DecodePlan:
    """How images are decoded.

    Args:
        limits: Bounds of images and of decoders.
        resize_px: Shorter side of the result.
        interpolation: Kernel of the resize.
        faults: Plan of named points to fail at, for tests.
        faults_folder: Where fired points are marked.
    """

    limits: IngestLimits
    resize_px: int
    interpolation: Interpolation
    faults: str = ""
    faults_folder: str = ""

    def spec(self) -> DecoderSpec:
        """Return what each decoder process is told."""
        return DecoderSpec(
            parent_pid=os.getpid(),
            resize_px=self.resize_px,
            interpolation=self.interpolation,
            max_pixels=self.limits.max_image_pixels,
            max_side_px=self.limits.max_side_px,
            max_aspect=self.limits.max_aspect,
            cpu_seconds=self.limits.decode_cpu_seconds,
            memory_bytes=self.limits.decoder_memory_bytes,
            faults=self.faults,
            faults_folder=self.faults_folder,
        )


class DecoderPool:
    """A few decoder processes; start early, since they take a moment to import what they need.

    Each has a thread that starts it, and that lives as long as the pool: a process asks the
    kernel to be killed when the thread that started it ends.

    Args:
        plan: How images are decoded.
    """

    def __init__(self, plan: DecodePlan) -> None:
        self._requests: queue.SimpleQueue[tuple[int, Path] | None] = queue.SimpleQueue()
        self._outcomes: queue.Queue[Outcome | BaseException] = queue.Queue(_WAITING_ANSWERS)
        self._closed = threading.Event()
        # Daemons: an ingest that fails does not wait for a decoder that hangs
        self._threads = [
            threading.Thread(target=self._serve, args=(plan,), daemon=True)
            for _ in range(plan.limits.decoders)
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> DecoderPool:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._closed.set()
        for _ in self._threads:
            self._requests.put(None)
        while any(thread.is_alive() for thread in self._threads):
            with suppress(queue.Empty):  # a thread may wait for room
                self._outcomes.get(timeout=_CLOSING_POLL_SECONDS)

    def decode(self, paths: Sequence[Path]) -> Iterator[Outcome]:
        """Yield the outcome of every image, in the order in which they are done."""
        for request in enumerate(paths):
            self._requests.put(request)
        for _ in paths:
            outcome = self._outcomes.get()
            if isinstance(outcome, BaseException):
                raise outcome
            yield outcome

    def _serve(self, plan: DecodePlan) -> None:
        try:
            with _Decoder(plan) as decoder:
                while (request := self._requests.get()) is not None:
                    if self._closed.is_set():
                        return
                    self._outcomes.put(decoder.decode(*request))
        except BaseException as error:  # noqa: BLE001 - raised again by the consumer
            self._outcomes.put(error)


class _Decoder:
    """One decoder process, replaced when it dies."""

    def __init__(self, plan: DecodePlan) -> None:
        self._plan = plan
        self._process = self._started()

    def __enter__(self) -> _Decoder:
        return self

    def __exit__(self, *_: object) -> None:
        self._kill()

    def decode(self, index: int, path: Path) -> Outcome:
        """Have one image decoded; a dead or stuck process is replaced."""
        try:
            return self._asked(index, path)
        except TimeoutError:
            seconds = self._plan.limits.decode_wall_seconds
            outcome = Undecodable(index, "decode-timeout", f"decoding it takes over {seconds:g} s")
        except (OSError, EOFError):
            outcome = self._verdict(index)
        self._kill()
        self._process = self._started()
        return outcome

    def _asked(self, index: int, path: Path) -> Outcome:
        deadline = time.monotonic() + self._plan.limits.decode_wall_seconds
        request = json.dumps({"index": index, "path": str(path)}).encode()
        assert self._process.stdin is not None
        self._process.stdin.write(LENGTH.pack(len(request)) + request)
        (length,) = LENGTH.unpack(self._read(LENGTH.size, deadline))
        facts = json.loads(self._read(length, deadline))
        if "code" in facts:
            return Undecodable(index, facts["code"], facts["message"])
        height_px, width_px = facts.pop("shape")
        data = self._read(height_px * width_px * _CHANNELS, deadline)
        pixels = np.frombuffer(data, np.uint8).reshape(height_px, width_px, _CHANNELS)
        return Decoded(index, pixels, facts)

    def _read(self, size_bytes: int, deadline: float) -> bytearray:
        """Read exactly that many bytes of the answer before the deadline."""
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        data = bytearray(size_bytes)
        view, done = memoryview(data), 0
        while done < size_bytes:
            remaining = deadline - time.monotonic()
            if remaining <= 0 or not select.select([descriptor], [], [], remaining)[0]:
                raise TimeoutError("no answer in time")
            count = os.readv(descriptor, [view[done:]])
            if not count:
                raise EOFError("the decoder ended")
            done += count
        return data

    def _verdict(self, index: int) -> Undecodable:
        """Say why the process ended without an answer."""
        try:
            status = self._process.wait(_DYING_SECONDS)
        except subprocess.TimeoutExpired:
            status = None
        if status == -signal.SIGXCPU:
            seconds = self._plan.limits.decode_cpu_seconds
            text = f"decoding it takes more than {seconds} s of processor time"
            return Undecodable(index, "decode-timeout", text)
        return Undecodable(index, "decoder-crash", f"its decoder died (status {status})")

    def _started(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "jobs.datasets.decoder", self._plan.spec().as_argument()]
        process = subprocess.Popen(  # noqa: S603 - our own module
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        assert process.stdout is not None
        # An answer is a few hundred kilobytes: a larger pipe saves most switches between the two
        with suppress(PermissionError):
            fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        return process

    def _kill(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
