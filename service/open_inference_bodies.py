"""Bodies of the Open Inference Protocol, version 2: JSON, and tensors as bytes behind it.

With the binary extension a body is JSON, whose length a header tells, followed by the bytes of the
tensors in the order in which the JSON names them. Numbers are little-endian; each element of a
BYTES tensor is its length as uint32 and its bytes. In JSON a BYTES element is text, so an encoded
image is base64 there.

Source: kserve/open-inference-protocol, specification/protocol/inference_rest.md; Triton Inference
Server, docs/protocol/extension_binary_data.md and extension_classification.md.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from service.errors import ValidationFailed
from service.image_bodies import MAX_IMAGES, decode_base64
from service.json_body import parse_json, validate
from service.schemas import Request

IMAGE = "image"
PIXELS = "pixels"
LOGITS = "logits"
PROBABILITIES = "probabilities"
INPUTS = {IMAGE: "BYTES", PIXELS: "FP32"}
OUTPUTS = (LOGITS, PROBABILITIES)
_LENGTH = struct.Struct("<I")
_FLOAT_BYTES = 4


class InputTensor(Request):
    """One input; `data` is missing where its bytes follow the JSON."""

    name: str = Field(max_length=64)
    shape: list[int] = Field(min_length=1, max_length=8)
    datatype: str = Field(max_length=16)
    parameters: dict[str, Any] = Field(default_factory=dict)
    data: list[Any] | None = None


class OutputTensor(Request):
    """One output that is asked for."""

    name: str = Field(max_length=64)
    parameters: dict[str, Any] = Field(default_factory=dict)


class InferBody(Request):
    """The JSON of `.../infer`."""

    id: str | None = Field(None, max_length=256)
    model_name: str | None = Field(None, description="Sent by KServe's client; the path decides.")
    model_version: str | None = Field(None, description="As `model_name`.")
    parameters: dict[str, Any] = Field(default_factory=dict)
    inputs: list[InputTensor] = Field(min_length=1, max_length=2)
    outputs: list[OutputTensor] | None = Field(None, max_length=16)


@dataclass(frozen=True)
class RequestedOutput:
    """An output that is asked for.

    Args:
        name: `logits` or `probabilities`.
        is_binary: Whether its bytes follow the JSON.
        classes: With the classification extension, how many of the highest as text; else 0.
    """

    name: str
    is_binary: bool = False
    classes: int = 0


@dataclass(frozen=True)
class InferRequest:
    """What a request asks for.

    Args:
        id: To be told again in the answer, if it has one.
        images: Encoded, or float32 `[3, H, W]` each.
        preprocessed: Which of the two.
        outputs: In the order of the answer.
    """

    id: str | None
    images: Sequence[bytes | memoryview]
    preprocessed: bool
    outputs: Sequence[RequestedOutput]


def parse_infer(body: bytes, json_bytes: int | None) -> InferRequest:
    """Return what a body asks for.

    Args:
        body: JSON, and with the binary extension bytes behind it.
        json_bytes: How long the JSON is; None if it is all.

    Raises:
        JsonMalformed: It is not strict JSON.
        ValidationFailed: A tensor is unknown, or not of its type, shape and length.
    """
    if json_bytes is not None and json_bytes > len(body):
        message = f"{json_bytes}, but the body has {len(body)} bytes"
        raise ValidationFailed.one("/Inference-Header-Content-Length", "too-long", message)
    asked = validate(InferBody, parse_json(body[:json_bytes]))
    if len(asked.inputs) != 1:
        message = f"send either {IMAGE!r} or {PIXELS!r}"
        raise ValidationFailed.one("/inputs", "not-one-input", message)
    rest = memoryview(body)[len(body) if json_bytes is None else json_bytes :]
    tensor = asked.inputs[0]
    if INPUTS.get(tensor.name) != tensor.datatype:
        known = " or ".join(f"{name!r} of {datatype}" for name, datatype in INPUTS.items())
        message = f"{tensor.name!r} of {tensor.datatype} is unknown; send {known}"
        raise ValidationFailed.one("/inputs/0", "unknown-input", message)
    images = _images(tensor, rest) if tensor.name == IMAGE else _pixels(tensor, rest)
    return InferRequest(asked.id, images, tensor.name == PIXELS, _requested(asked))


def write_answer(
    head: dict[str, Any],
    requested: Sequence[RequestedOutput],
    values: dict[str, list[list[float]]],
    labels: Sequence[str],
) -> tuple[bytes, int | None]:
    """Return the body of an answer, and the length of its JSON if bytes follow it.

    Args:
        head: What stands beside `outputs`.
        requested: Which outputs, in which form.
        values: `[N][C]` by output.
        labels: The C classes.
    """
    described, blocks = [], []
    for output in requested:
        rows = values[output.name]
        if output.classes:
            count = min(output.classes, len(labels))
            elements: list[Any] = [
                text for row in rows for text in _classification(row, labels, count)
            ]
            datatype, shape = "BYTES", [len(rows), count]
        else:
            elements = [value for row in rows for value in row]
            datatype, shape = "FP32", [len(rows), len(labels)]
        told: dict[str, Any] = {"name": output.name, "datatype": datatype, "shape": shape}
        if output.is_binary:
            blocks.append(_bytes_of(elements, datatype))
            described.append({**told, "parameters": {"binary_data_size": len(blocks[-1])}})
        else:
            described.append({**told, "data": elements})
    text = json.dumps({**head, "outputs": described}, allow_nan=False).encode()
    return b"".join([text, *blocks]), len(text) if blocks else None


def _images(tensor: InputTensor, rest: memoryview) -> Sequence[bytes | memoryview]:
    """Return the encoded images of a BYTES tensor `[N]` or `[N, 1]`."""
    count = _batch(tensor, tensor.shape[1:] in ([], [1]), "[N] or [N, 1]")
    data = _binary(tensor, rest)
    if data is not None:
        return _elements(data, count)
    texts = list(_flat(tensor.data or []))
    if len(texts) != count or not all(isinstance(text, str) for text in texts):
        raise _wrong_data(f"{len(texts)} elements, the shape says {count} texts of base64")
    return [decode_base64(text, f"/inputs/0/data/{index}") for index, text in enumerate(texts)]


def _pixels(tensor: InputTensor, rest: memoryview) -> Sequence[bytes | memoryview]:
    """Return each image of an FP32 tensor `[N, 3, H, W]` as its bytes."""
    shape = tensor.shape
    is_square = len(shape) == 4 and shape[1] == 3 and shape[2] == shape[3] > 0
    count = _batch(tensor, is_square, "[N, 3, size, size]")
    floats = math.prod(shape[1:])
    data = _binary(tensor, rest)
    if data is None:
        numbers = list(_flat(tensor.data or []))
        if len(numbers) != count * floats:
            raise _wrong_data(f"{len(numbers)} elements, the shape says {count * floats}")
        try:
            data = memoryview(struct.pack(f"<{len(numbers)}f", *numbers))
        except (struct.error, OverflowError) as error:
            raise _wrong_data(f"not all are numbers of 32 bits ({error})") from None
    size = floats * _FLOAT_BYTES
    if len(data) != count * size:
        raise _wrong_data(f"{len(data)} bytes, the shape says {count * size}")
    return [data[start : start + size] for start in range(0, len(data), size)]


def _batch(tensor: InputTensor, is_fine: bool, wanted: str) -> int:
    count = tensor.shape[0]
    if not is_fine or not 1 <= count <= MAX_IMAGES:
        message = f"{tensor.shape}, but {wanted} with N from 1 to {MAX_IMAGES} is taken"
        raise ValidationFailed.one("/inputs/0/shape", "wrong-shape", message)
    return count


def _binary(tensor: InputTensor, rest: memoryview) -> memoryview | None:
    """Return the bytes of a tensor behind the JSON, all of them; None if it is in the JSON."""
    if "shared_memory_region" in tensor.parameters:
        raise _wrong_data("shared memory is not offered; send the tensor in the body")
    size = tensor.parameters.get("binary_data_size")
    if size is None:
        if tensor.data is None or len(rest):
            raise _wrong_data("it stands neither in the JSON nor, with its size, behind it")
        return None
    if tensor.data is not None or type(size) is not int or size != len(rest):
        raise _wrong_data(
            f"binary_data_size is {str(size)[:20]}, {len(rest)} bytes follow the JSON"
        )
    return rest


def _elements(data: memoryview, count: int) -> list[memoryview]:
    """Return the elements of a BYTES tensor."""
    elements: list[memoryview] = []
    start = 0
    while start + _LENGTH.size <= len(data) and len(elements) < count:
        (length,) = _LENGTH.unpack_from(data, start)
        start += _LENGTH.size
        elements.append(data[start : start + length])
        start += length
    if start != len(data) or len(elements) != count:
        raise _wrong_data(f"{len(data)} bytes are not {count} elements with their lengths")
    return elements


def _requested(asked: InferBody) -> list[RequestedOutput]:
    """Return the outputs that are asked for; all of them if none is named."""
    by_default = asked.parameters.get("binary_data_output") is True
    if not asked.outputs:
        return [RequestedOutput(name, by_default) for name in OUTPUTS]
    requested = []
    for index, output in enumerate(asked.outputs):
        if output.name not in OUTPUTS:
            message = f"{output.name!r} is unknown; there are {', '.join(OUTPUTS)}"
            raise ValidationFailed.one(f"/outputs/{index}/name", "unknown-output", message)
        classes = output.parameters.get("classification", 0)
        if type(classes) is not int or classes < 0 or "shared_memory_region" in output.parameters:
            message = "classification is a count; shared memory is not offered"
            raise ValidationFailed.one(f"/outputs/{index}/parameters", "not-offered", message)
        is_binary = output.parameters.get("binary_data", by_default) is True
        requested.append(RequestedOutput(output.name, is_binary, classes))
    return requested


def _classification(row: Sequence[float], labels: Sequence[str], count: int) -> list[str]:
    """Return `value:index:label` of the highest values; equal ones in the order of the classes."""
    highest = sorted(range(len(row)), key=lambda index: -row[index])[:count]
    return [f"{row[index]:f}:{index}:{labels[index]}" for index in highest]


def _bytes_of(elements: Sequence[Any], datatype: str) -> bytes:
    if datatype == "FP32":
        return struct.pack(f"<{len(elements)}f", *elements)
    texts = [text.encode() for text in elements]
    return b"".join(part for text in texts for part in (_LENGTH.pack(len(text)), text))


def _flat(data: Sequence[Any]) -> Iterator[Any]:
    """Yield the elements of a tensor in JSON, flat or nested, in row-major order."""
    for element in data:
        if isinstance(element, list):
            yield from _flat(element)
        else:
            yield element


def _wrong_data(message: str) -> ValidationFailed:
    return ValidationFailed.one("/inputs/0/data", "wrong-data", message)
