"""The other server: the same network behind LitServe, written as its documentation shows.

    python benchmarks/litserve_app.py --port P --state FILE --classes 2 --batch 16 [--onnx FILE]

Runs in an environment of its own. JPEG in (multipart, as its documentation sends images), labels
out; batches of at most `--batch`, gathered for `--timeout` seconds.
"""

from __future__ import annotations

import argparse
import io
from typing import Any

import litserve
import torch
import torchvision
from PIL import Image
from torchvision.transforms import v2


def parse_options() -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--state", required=True, help="state of mobilenet_v2 with its classes")
    parser.add_argument("--classes", type=int, default=2)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--timeout", type=float, default=0.01, help="seconds")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--onnx", help="features by ONNX Runtime from this file instead")
    return parser.parse_args()


class Classify(litserve.LitAPI):
    """mobilenet_v2 with a head of its own."""

    def __init__(self, options: argparse.Namespace, **batching: Any) -> None:  # noqa: ANN401
        super().__init__(**batching)
        self._options = options

    def setup(self, device: str) -> None:
        """Load the network; once in each worker."""
        torch.set_num_threads(self._options.threads)
        model = torchvision.models.mobilenet_v2(num_classes=self._options.classes)
        model.load_state_dict(torch.load(self._options.state, weights_only=True))
        self._model = model.eval().to(device)
        self._session = None
        if self._options.onnx:
            import onnxruntime  # noqa: PLC0415 - only if asked for

            settings = onnxruntime.SessionOptions()
            settings.intra_op_num_threads = self._options.threads
            self._session = onnxruntime.InferenceSession(self._options.onnx, settings)
        self._transform = v2.Compose(
            [
                v2.PILToTensor(),
                v2.Resize(256, antialias=True),
                v2.CenterCrop(224),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
            ]
        )

    def decode_request(self, request):
        """Decode one image; LitServe reads annotations of its hooks, so these two have none."""
        data = request["content"].file.read()
        return self._transform(Image.open(io.BytesIO(data)).convert("RGB"))

    def batch(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        """Stack images."""
        return torch.stack(inputs)

    def predict(self, images: torch.Tensor) -> torch.Tensor:
        """Return probabilities of a batch."""
        with torch.inference_mode():
            if self._session is None:
                return self._model(images).softmax(1)
            (features,) = self._session.run(None, {"images": images.numpy()})
            return self._model.classifier(torch.from_numpy(features)).softmax(1)

    def encode_response(self, output):
        """Return one image's answer."""
        return {"scores": output.tolist()}


if __name__ == "__main__":
    options = parse_options()
    api = Classify(options, max_batch_size=options.batch, batch_timeout=options.timeout)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=options.workers)
    server.run(port=options.port, host="127.0.0.1", generate_client_file=False, log_level="warning")
