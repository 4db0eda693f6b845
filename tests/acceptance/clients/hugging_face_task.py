"""A user of Hugging Face's client: an image by path and as bytes, with and without parameters."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError


def main(url: str, model: str, image: Path) -> None:
    client = InferenceClient(model=f"{url}/hf/{model}")
    other = InferenceClient(model=f"{url}/hf/nothing")

    def ask(what: Any = image, **parameters: Any) -> list[dict[str, Any]]:  # noqa: ANN401
        found = client.image_classification(what, **parameters)
        return [{"label": item.label, "score": item.score} for item in found]

    said: dict[str, Any] = {
        "by_path": ask(),
        "as_bytes": ask(image.read_bytes()),
        "best": ask(top_k=1),
        **{name: ask(function_to_apply=name) for name in ("softmax", "sigmoid", "none")},
        "refused": {
            "no model": refused(lambda: other.image_classification(image)),
            "no image": refused(lambda: ask(b"no image")),
            "function": refused(lambda: ask(function_to_apply="relu")),
        },
    }
    print(json.dumps(said))


def refused(call: Callable[[], object]) -> dict[str, Any]:
    """Return how the client tells the error of a call."""
    try:
        call()
    except (HfHubHTTPError, httpx2.HTTPStatusError) as error:
        return {"status": error.response.status_code, "message": str(error)}
    raise AssertionError("it was accepted")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
