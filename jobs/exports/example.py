"""The program of 25 lines that comes with an export: what a person runs first."""

from __future__ import annotations

from models_cache.artifacts import MULTILABEL

_CODE = '''\
"""Labels of photographs by {model}, version {version}: python example.py photo.jpg ...

It needs {packages}: pip install {packages_to_install}
"""

import json
import sys
from pathlib import Path

{imports}

folder = Path(__file__).parent
labels = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
{load}

for path in sys.argv[1:]:
    image = ImageOps.exif_transpose(Image.open(path))
    if image.has_transparency_data:  # on white, as in training
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    image = image.convert("RGB")
{run}
{show}
'''
_ONNX = {
    "packages": "onnxruntime, numpy and Pillow",
    "packages_to_install": "onnxruntime numpy pillow",
    "imports": "import numpy as np\nimport onnxruntime\nfrom PIL import Image, ImageOps",
    "load": 'session = onnxruntime.InferenceSession(str(folder / "model.onnx"))',
    "run": """\
    pixels = np.asarray(image)[None]  # uint8 [1, H, W, 3]
    probabilities, logits = session.run(None, {"images": pixels})""",
    "best": "probabilities[0].argsort()[::-1][:5]",
}
_TORCH = {
    "packages": "torch and Pillow",
    "packages_to_install": "torch pillow",
    "imports": "import torch\nfrom PIL import Image, ImageOps",
    "load": 'model = torch.export.load(folder / "model.pt2").module()',
    "run": """\
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    with torch.inference_mode():
        probabilities, logits = model(pixels.reshape(1, image.height, image.width, 3))""",
    "best": "probabilities[0].argsort(descending=True)[:5].tolist()",
}
_PARTS = {"onnx": _ONNX, "torch_export": _TORCH}
_ONE_LABEL = """\
    for index in {best}:
        print(f"{{path}}\\t{{labels['labels'][index]}}\\t{{probabilities[0][index]:.6f}}")"""
_SEVERAL_LABELS = """\
    for index in {best}:
        score = float(probabilities[0][index])
        said = "yes" if score >= labels["thresholds"][index] else "no"
        print(f"{{path}}\\t{{labels['labels'][index]}}\\t{{score:.6f}}\\t{{said}}")"""


def example_code(format_name: str, model: str, version: int, task: str) -> str:
    """Return a program that prints path, label and score of the five likeliest labels.

    With several labels per image it also prints whether the score reaches the label's threshold.
    """
    parts = _PARTS[format_name]
    show = (_SEVERAL_LABELS if task == MULTILABEL else _ONE_LABEL).format(best=parts["best"])
    told = {name: text for name, text in parts.items() if name != "best"}
    return _CODE.format(model=model, version=version, show=show, **told)
