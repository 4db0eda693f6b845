"""A user of Triton's client: health, metadata, images and tensors in, binary and JSON out."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException


def main(url: str, model: str, images_folder: Path, tensor_path: Path) -> None:
    client = InferenceServerClient(url.removeprefix("http://"))
    encoded = [path.read_bytes() for path in sorted(images_folder.iterdir())]
    count = len(encoded)

    def ask(
        data: Any,  # noqa: ANN401 - an array
        kind: str = "image",
        binary: bool = True,
        outputs: list[Any] | None = None,
        **options: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        tensor = InferInput(kind, list(data.shape), "FP32" if kind == "pixels" else "BYTES")
        tensor.set_data_from_numpy(data, binary_data=binary)
        return client.infer(options.pop("name", model), [tensor], outputs=outputs, **options)

    images = np.array(encoded, dtype=np.object_)
    column = images.reshape(count, 1)
    texts = np.array([base64.b64encode(image) for image in encoded], dtype=np.object_)
    tensors = np.load(tensor_path)
    as_json = [InferRequestedOutput(name, binary_data=False) for name in ("probabilities",)]
    binary = ask(images, request_id="seven")
    in_json = ask(texts, binary=False, outputs=as_json)
    classified = ask(images, outputs=[InferRequestedOutput("probabilities", class_count=1)])
    pixels_in_json = ask(tensors[:1], "pixels", binary=False, outputs=as_json)
    said: dict[str, Any] = {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "server": client.get_server_metadata(),
        "model": client.get_model_metadata(model),
        "version": client.get_model_metadata(model, "1"),
        "model_ready": client.is_model_ready(model),
        "version_ready": client.is_model_ready(model, "1"),
        "other_ready": client.is_model_ready("nothing"),
        "answer": binary.get_response(),
        "logits": binary.as_numpy("logits").tolist(),
        "probabilities": binary.as_numpy("probabilities").tolist(),
        "of_column": ask(column).as_numpy("probabilities").tolist(),
        "of_version": ask(images, model_version="1").as_numpy("probabilities").tolist(),
        "in_json": in_json.as_numpy("probabilities").tolist(),
        "json_answer": in_json.get_response(),
        "of_pixels": ask(tensors, "pixels").as_numpy("probabilities").tolist(),
        "of_pixels_in_json": pixels_in_json.as_numpy("probabilities").tolist(),
        "classified": [row[0].decode() for row in classified.as_numpy("probabilities")],
        "refused": {
            "no model": refused(lambda: ask(images, name="nothing")),
            "no version": refused(lambda: ask(images, model_version="77")),
            "no image": refused(lambda: ask(np.array([encoded[0], b"x"], dtype=np.object_))),
            "wrong input": refused(lambda: ask(images, "picture")),
            "wrong size": refused(lambda: ask(tensors[:, :, 1:, 1:].copy(), "pixels")),
            "wrong output": refused(
                lambda: ask(images, outputs=[InferRequestedOutput("features")])
            ),
            "packed": refused(lambda: ask(images, request_compression_algorithm="gzip")),
        },
    }
    print(json.dumps(said))


def refused(call: Callable[[], object]) -> dict[str, Any]:
    """Return how the client tells the error of a call."""
    try:
        call()
    except InferenceServerException as error:
        return {"status": error.status(), "message": error.message()}
    raise AssertionError("it was accepted")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
