"""Datasets of drawn images, spec files and real training children, for tests of training."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from jobs.datasets.manifest import LabelledImage, Manifest, build_manifest
from jobs.executors.local import TRAINING_ENVIRONMENT
from jobs.progress import FILE_NAME, read_progress
from models_cache.backbones import build_backbone
from models_cache.blobs import BlobStore
from models_cache.durable import canonical_json, sha256_of_bytes, sha256_of_file
from models_cache.preprocessing import Preprocessing

REPOSITORY = Path(__file__).resolve().parents[1]
ARCHITECTURE = "squeezenet1_1"
_COLOURS = {"red": (200, 60, 60), "green": (60, 180, 80), "blue": (60, 80, 200)}
SMALL = Preprocessing(resize_px=72, crop_px=64)


def drawn_photo(class_name: str, seed: int, size_px: int = 80) -> bytes:
    """Draw a noisy PNG whose colour tells its class; different for each seed."""
    noise = np.random.default_rng([seed, len(class_name)]).normal(0, 40, (size_px, size_px + 12, 3))
    pixels = np.clip(np.array(_COLOURS[class_name]) + noise, 0, 255).astype(np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def store_dataset(
    data_folder: Path, counts: dict[str, int], classes: Sequence[str] = ("red", "green")
) -> Manifest:
    """Store drawn images as blobs with their manifest: `counts` images per class and split."""
    blobs = BlobStore(data_folder / "blobs")
    images = []
    for number, (split, count) in enumerate(counts.items()):
        for class_name in classes:
            for index in range(count):
                data = drawn_photo(class_name, 1000 * number + index)
                sha256 = blobs.put_bytes(data).sha256
                path = f"{split}/{class_name}/{index}.png"
                images.append(LabelledImage(sha256, len(data), path, 92, 80, split, class_name))
    manifest = build_manifest(images, classes)
    manifest.store(blobs)
    return manifest


def write_catalogue(folder: Path, architecture: str = ARCHITECTURE, name: str = "DRAWN") -> Path:
    """Save random weights of a small network with a catalogue file that names them."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(len(name))
    file = folder / f"{architecture}-{name.lower()}.pth"
    torch.save(build_backbone(architecture).state_dict(), file)
    entry = {
        "architecture": architecture,
        "name": name,
        "file": file.name,
        "sha256": sha256_of_file(file),
        "head": False,
        "mean": list(SMALL.mean),
        "std": list(SMALL.std),
        "resize": SMALL.resize_px,
        "crop": SMALL.crop_px,
        "license": "CC0-1.0",
        "source": "random",
    }
    catalogue = folder / "catalog.json"
    catalogue.write_text(json.dumps({"weights": [entry]}))
    return catalogue


class TrainingChildren:
    """Forks real training children from a process that has torch imported and nothing run.

    What the worker's fork server does, without its care: it saves the import for each of them.
    """

    _PROGRAM = """
import os, sys, traceback
from jobs.run import main
print("ready", flush=True)
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            main(line.strip())
            status = 0
        except SystemExit as error:
            status = error.code
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", self._PROGRAM],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **TRAINING_ENVIRONMENT},
        )
        assert self._answer() == "ready"

    def run(self, spec_path: Path) -> int:
        """Run one child to its end; return its exit status, negated for a signal."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{spec_path}\n")
        self._process.stdin.flush()
        return int(self._answer())

    def close(self) -> None:
        """End the process; its children have ended."""
        self._process.communicate(timeout=30)

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


@dataclass
class TrainingJob:
    """A job whose attempts are real child processes.

    Args:
        data_folder: Root of all state.
        job_id: Names its run folder.
        spec: What differs from the usual spec.
    """

    data_folder: Path
    job_id: str
    spec: dict[str, Any] = field(default_factory=dict)
    attempts: int = 0

    @property
    def run_folder(self) -> Path:
        return self.data_folder / "runs" / self.job_id

    @property
    def attempt_folder(self) -> Path:
        return self.run_folder / str(self.attempts)

    def start(self, faults: str = "") -> subprocess.Popen[bytes]:
        """Start the next attempt as `python -m jobs.run`."""
        return subprocess.Popen(
            [sys.executable, "-m", "jobs.run", str(self.next_spec(faults))],
            cwd=REPOSITORY,
            stdout=subprocess.DEVNULL,
            env={**os.environ, **TRAINING_ENVIRONMENT},
        )

    def next_spec(self, faults: str = "") -> Path:
        """Write the spec of the next attempt and return its path."""
        self.attempts += 1
        self.attempt_folder.mkdir(parents=True)
        spec = {
            **self.spec,
            "job_id": self.job_id,
            "attempt": self.attempts,
            "run_folder": str(self.run_folder),
            "attempt_folder": str(self.attempt_folder),
            "data_folder": str(self.data_folder),
            "faults": faults,
            "faults_folder": str(self.run_folder / "faults"),
        }
        path = self.attempt_folder / "spec.json"
        path.write_text(json.dumps(spec))
        return path

    def run(self, children: TrainingChildren, faults: str = "") -> int:
        """Run the next attempt to its end; return its exit status, negated for a signal."""
        return children.run(self.next_spec(faults))

    def lines(self) -> list[dict[str, Any]]:
        """Return the progress lines of the last attempt."""
        return read_progress(self.attempt_folder / FILE_NAME, 0)[0]

    def all_lines(self) -> list[dict[str, Any]]:
        """Return the progress lines of all attempts in their order."""
        folders = [self.run_folder / str(number + 1) for number in range(self.attempts)]
        return [line for folder in folders for line in read_progress(folder / FILE_NAME, 0)[0]]

    def result(self) -> dict[str, Any]:
        """Return the last line of the last attempt, which must be a result."""
        last = self.lines()[-1]
        assert last["kind"] == "result", last
        return last


def training_spec(manifest: Manifest, catalogue: Path, **different: object) -> dict[str, Any]:
    """Return what the worker would tell a child about a small job on the CPU."""
    return {
        "kind": "fine_tune",
        "dataset": {
            "id": "ds_1",
            "manifest_sha256": sha256_of_bytes(canonical_json(manifest.as_json())),
            "digest": manifest.digest,
        },
        "architecture": ARCHITECTURE,
        "weights": "DRAWN",
        "recipe": "head",
        "parameters": {},
        "seed": 3,
        "weights_sources": [],
        "weights_catalogues": [str(catalogue)],
        "offline": True,
        "device": "cpu",
        "threads": 1,
        "time_limit_seconds": None,
        "lineage": {"job_id": "job_1", "dataset_id": "ds_1"},
        **different,
    }
