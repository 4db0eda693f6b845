"""Exports every architecture to every format with random values; prints what works, and why not.

Images are small: 64 px, the least that the network takes, or 224 px for AlexNet and VGG, whose
pooling ONNX takes only where it divides its input. Prints a Markdown row for each: seconds to
write, size, largest difference of a probability to the serving path over the images of every check.

    python benchmarks/exports.py                 # all, smallest first
    python benchmarks/exports.py resnet18 swin_t
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from pathlib import Path

import torch

from models_cache.artifacts import MODEL_FILE, Artifact, ArtifactFacts
from models_cache.backbones import (
    Classifier,
    architectures,
    build_classifier,
    family,
    feature_width,
    parameter_count,
    smallest_input_px,
)
from models_cache.blobs import Blob
from models_cache.errors import GraftError
from models_cache.export_check import check_images, compare_with_served, served_probabilities
from models_cache.export_formats import FORMATS, ExportFormat, load_graph, write_graph
from models_cache.export_graph import ImageGraph
from models_cache.preprocessing import Preprocessing

_CLASSES = ("a", "b", "c", "d", "e")
_LEAST_PX = 64
_LEAST_PX_OF_FAMILY = {"alexnet": 224, "vgg": 224}
_LOGIT = 2.0  # about what a trained head gives: else every probability is 0 or 1


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("architectures", nargs="*")
    named = parser.parse_args().architectures
    chosen = named or sorted(architectures(), key=parameter_count)
    print(
        "| architecture | format | seconds | MB | own size | any size |\n|---|---|---|---|---|---|"
    )
    failed = 0
    for architecture in chosen:
        artifact, classifier = _model(architecture)
        for into in FORMATS.values():
            try:
                told = _exported(artifact, classifier, into)
            except GraftError as error:
                failed += 1
                told = f"{error}"
            print(f"| {architecture} | {into.name} | {told} |", flush=True)
        gc.collect()
    print(f"{len(chosen) * len(FORMATS) - failed} of {len(chosen) * len(FORMATS)} exports")


def _model(architecture: str) -> tuple[Artifact, Classifier]:
    torch.manual_seed(0)
    side_px = max(
        _LEAST_PX_OF_FAMILY.get(family(architecture), _LEAST_PX), smallest_input_px(architecture)
    )
    preprocessing = Preprocessing(side_px + side_px // 8, side_px)
    classifier = build_classifier(architecture, len(_CLASSES), input_px=side_px).eval()
    with torch.inference_mode():
        features = classifier.backbone(torch.randn(2, 3, side_px, side_px))
    torch.nn.init.normal_(classifier.head.weight, std=_LOGIT / float(features.norm(dim=1).mean()))
    width = feature_width(architecture)
    task = "classification"
    facts = ArtifactFacts(task, architecture, "whole", None, preprocessing, _CLASSES, width)
    return Artifact("0" * 64, facts, {MODEL_FILE: Blob("0" * 64, 0)}), classifier


def _exported(artifact: Artifact, classifier: Classifier, into: ExportFormat) -> str:
    facts = artifact.facts
    images = check_images(facts.preprocessing)
    served = served_probabilities(classifier, artifact, images, _nothing)
    graph = ImageGraph(classifier, facts).eval()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / into.file
        started = time.monotonic()
        write_graph(graph, into, facts.architecture, path)
        seconds = time.monotonic() - started
        size = path.stat().st_size / 1e6
        run = load_graph(path, into, facts.architecture, torch.get_num_threads())
        found = compare_with_served(run, into.name, images, served, _nothing)
    return f"{seconds:.1f} | {size:.0f} | {found.resized:.0e} | {found.any_size:.0e}"


def _nothing(_done: int, _total: int) -> None:
    pass


if __name__ == "__main__":
    main()
