"""What a cross-validated choice among backbones costs, against their bare feature passes.

    python benchmarks/race.py --archive hymenoptera.zip --weights WEIGHTS_FOLDER

In one run on one machine, each in processes of its own: a loop that does nothing but pass all
images once through each backbone (networks, engines and pixels at hand before the clock starts),
a race of the same backbones from a cold feature cache, and the loop again. Two backbones have the
weights of WEIGHTS_FOLDER; weights make no difference to time, so three more have random ones.

Prints the ratio of the race, weights check and learning curve included, to the mean of the two
loops, and writes it as JSON. Needs torch, torchvision, numpy, safetensors, pillow.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

_REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(_REPOSITORY))

import torch  # noqa: E402 - after the path

from jobs.datasets.loading import load_dataset  # noqa: E402
from jobs.datasets.manifest import Manifest  # noqa: E402
from jobs.progress import FILE_NAME, read_progress  # noqa: E402
from jobs.training.device import set_up  # noqa: E402
from models_cache.backbones import build_backbone  # noqa: E402
from models_cache.blobs import BlobStore  # noqa: E402
from models_cache.catalogue import Catalogue  # noqa: E402
from models_cache.classifiers import golden_images  # noqa: E402
from models_cache.durable import sha256_of_file  # noqa: E402
from models_cache.engines import choose_engine, extract_features  # noqa: E402
from models_cache.features import freeze  # noqa: E402
from models_cache.pixels import PixelCache, PixelKey  # noqa: E402
from models_cache.preprocessing import Preprocessing  # noqa: E402

_WITH_RANDOM_WEIGHTS = ("resnet18", "mobilenet_v3_large", "shufflenet_v2_x1_0")
_BATCH = 32


def main() -> None:
    """Run loop, race and loop, print the ratio, write the JSON."""
    options = _parse_options()
    if options.passes is not None:  # we are the loop's own process
        print(json.dumps(_passes(options.passes, options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        catalogue = _write_catalogue(work / "source", options.weights)
        dataset = _ingest(work, options.archive)
        before = _timed_passes(work, dataset)
        race = _race(work, dataset, catalogue, options.threads)
        after = _timed_passes(work, dataset)
    loop = (sum(before.values()) + sum(after.values())) / 2
    report = {
        "machine": {"cpus": os.cpu_count(), "torch": torch.__version__},
        "backbones": len(before),
        "passes_before_seconds": before,
        "passes_after_seconds": after,
        "race_seconds": race["seconds"],
        "race_phases_seconds": race["phases"],
        "ratios": {"race_per_passes": round(race["seconds"] / loop, 4)},
        "ranking": race["ranking"],
        "recommendation": race["recommendation"],
    }
    text = json.dumps(report, indent=2)
    print(text)
    if options.json is not None:
        options.json.write_text(text + "\n")


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--archive", type=Path, required=True, help="a zip of train/ and val/")
    parser.add_argument("--weights", type=Path, required=True, help="a folder with catalog.json")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path, help="where the figures are written")
    parser.add_argument("--passes", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def _write_catalogue(folder: Path, weights: Path) -> Path:
    """Put the given weights and random ones of three networks into one catalogue."""
    folder.mkdir()
    entries = json.loads((weights / "catalog.json").read_text())["weights"]
    for entry in entries:
        (folder / entry["file"]).symlink_to((weights / entry["file"]).resolve())
    for architecture in _WITH_RANDOM_WEIGHTS:
        torch.manual_seed(0)
        file = folder / f"{architecture}-random.pth"
        torch.save(build_backbone(architecture).state_dict(), file)
        entry = {**entries[0], "architecture": architecture, "name": "RANDOM", "file": file.name}
        entries.append({**entry, "sha256": sha256_of_file(file), "source": "random"})
    path = folder / "catalog.json"
    path.write_text(json.dumps({"weights": entries}))
    return path


def _entrants(catalogue: Path) -> list[dict[str, Any]]:
    known = Catalogue.load(extra_files=[catalogue])
    found = []
    for entry in json.loads(catalogue.read_text())["weights"]:
        backbone = known.backbone(entry["architecture"])
        found.append(
            {
                "architecture": entry["architecture"],
                "weights": entry["name"],
                "parameters": backbone.parameters,
                "gflops": backbone.weights[0].gflops,
            }
        )
    return found


def _passes(manifest: Path, options: argparse.Namespace) -> dict[str, float]:
    """Pass all images once through each backbone; return the seconds of each pass."""
    work = manifest.parent
    set_up(torch.device("cpu"), options.threads)
    loaded = Manifest.load(BlobStore(work / "blobs"), manifest.read_text())
    preprocessing = Preprocessing()
    key = PixelKey(loaded.digest, preprocessing.resize_px, preprocessing.interpolation)
    cache, blobs = PixelCache(work / "cache" / "pixels"), BlobStore(work / "blobs")
    images = load_dataset(blobs, cache, loaded, key, options.threads, lambda _done, _total: None)
    seconds = {}
    for entrant in _entrants(work / "source" / "catalog.json"):
        backbone = freeze(build_backbone(entrant["architecture"]), torch.device("cpu"))
        probe = torch.from_numpy(golden_images(preprocessing.crop_px))
        engine = choose_engine(backbone, probe, preprocessing)
        count = len(loaded.images)
        ranges = (range(i, min(i + _BATCH, count)) for i in range(0, count, _BATCH))
        crops = (images.center_crops(chosen, preprocessing.crop_px) for chosen in ranges)
        started = time.monotonic()
        extract_features(engine, crops, preprocessing, _BATCH)
        seconds[entrant["architecture"]] = round(time.monotonic() - started, 3)
    return seconds


def _timed_passes(work: Path, dataset: dict[str, Any]) -> dict[str, float]:
    manifest = work / "manifest"
    manifest.write_text(dataset["manifest_sha256"])
    command = [sys.executable, sys.argv[0], *sys.argv[1:], "--passes", str(manifest)]
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    ended = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=environment)
    figures: dict[str, float] = json.loads(ended.stdout.splitlines()[-1])
    return figures


def _child(work: Path, module: str, spec: dict[str, Any]) -> list[dict[str, Any]]:
    """Run a child to its end and return its progress lines."""
    attempt = work / "runs" / spec["kind"] / "1"
    attempt.mkdir(parents=True)
    common = {
        "job_id": spec["kind"],
        "attempt": 1,
        "attempt_folder": str(attempt),
        "run_folder": str(attempt.parent),
        "data_folder": str(work),
        "parent_pid": os.getpid(),
    }
    path = attempt / "spec.json"
    path.write_text(json.dumps({**common, **spec}))
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, "-m", module, str(path)]
    subprocess.run(command, cwd=_REPOSITORY, env=environment, check=True)
    lines, _ = read_progress(attempt / FILE_NAME, 0)
    if lines[-1]["kind"] != "result":
        sys.exit(f"{module} did not succeed: {lines[-1]}")
    return lines


def _ingest(work: Path, archive: Path) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "kind": "ingest",
        "archive_sha256": BlobStore(work / "blobs").put_bytes(archive.read_bytes()).sha256,
        "parent_manifest_sha256": None,
        "limits": {},
        "resize_px": 256,
        "interpolation": "bilinear",
    }
    dataset: dict[str, Any] = _child(work, "jobs.datasets.ingest", spec)[-1]["dataset"]
    return dataset


def _race(work: Path, dataset: dict[str, Any], catalogue: Path, threads: int) -> dict[str, Any]:
    """Run a race; its clock starts behind the imports, as in a fork of the warm server."""
    entrants = _entrants(catalogue)
    spec = {
        "kind": "race",
        "dataset": {"id": "ds", **{key: dataset[key] for key in ("manifest_sha256", "digest")}},
        "architecture": entrants[0]["architecture"],
        "weights": entrants[0]["weights"],
        "recipe": "head",
        "parameters": {"folds": 5, "batch_size": _BATCH},
        "seed": 0,
        "weights_sources": [],
        "weights_catalogues": [str(catalogue)],
        "offline": True,
        "device": "cpu",
        "threads": threads,
        "time_limit_seconds": None,
        "lineage": {},
        "entrants": entrants,
        "rank_by": "loss",
        "learning_curve": "best",
    }
    lines = _child(work, "jobs.run", spec)
    begun = [(line["phase"], _seconds_of(line)) for line in lines if line["kind"] == "phase"]
    begun.append(("end", _seconds_of(lines[-1])))
    names = ("backbone", "loss", "accuracy_top1", "feature_seconds", "indistinguishable_from_best")
    return {
        "seconds": round(begun[-1][1] - begun[0][1], 3),
        "phases": {name: round(end - start, 3) for (name, start), (_, end) in pairwise(begun)},
        "ranking": [{name: row[name] for name in names} for row in lines[-1]["ranking"]],
        "recommendation": lines[-1]["recommendation"],
    }


def _seconds_of(line: dict[str, Any]) -> float:
    return datetime.fromisoformat(line["at"]).timestamp()


if __name__ == "__main__":
    main()
