"""Bodies of the Open Inference Protocol: what is read and written, and what is refused."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models_cache.errors import GraftError
from service.errors import ValidationFailed
from service.open_inference_bodies import RequestedOutput, parse_infer, write_answer

LABELS = ["ant", "bée"]
PIXELS = [float(n) for n in range(12)]  # [1, 3, 2, 2]


def image_input(shape: list[int], **fields: Any) -> dict[str, Any]:  # noqa: ANN401
    return {"name": "image", "shape": shape, "datatype": "BYTES", **fields}


def body_of(tensor: dict[str, Any], **fields: Any) -> bytes:  # noqa: ANN401
    return json.dumps({"inputs": [tensor], **fields}).encode()


def binary(tensor: dict[str, Any], data: bytes, **fields: Any) -> tuple[bytes, int]:  # noqa: ANN401
    text = body_of({**tensor, "parameters": {"binary_data_size": len(data)}}, **fields)
    return text + data, len(text)


def elements(*images: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(image)) + image for image in images)


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=32), st.booleans())
def test_images_are_read_alike_from_json_and_from_bytes(images: list[bytes], column: bool) -> None:
    shape = [len(images), 1] if column else [len(images)]
    texts = [base64.b64encode(image).decode() for image in images]
    nested = [[text] for text in texts] if column else texts
    from_json = parse_infer(body_of(image_input(shape, data=nested)), None)
    from_bytes = parse_infer(*binary(image_input(shape), elements(*images)))
    assert [bytes(image) for image in from_json.images] == images
    assert [bytes(image) for image in from_bytes.images] == images
    assert not from_json.preprocessed


def test_the_model_that_a_body_names_besides_the_path_is_passed_over() -> None:
    body = body_of(image_input([1], data=["eA=="]), model_name="m", model_version=None)
    assert [bytes(image) for image in parse_infer(body, None).images] == [b"x"]


def test_pixels_are_read_alike_from_flat_and_nested_json_and_from_bytes() -> None:
    tensor = {"name": "pixels", "shape": [1, 3, 2, 2], "datatype": "FP32"}
    raw = struct.pack("<12f", *PIXELS)
    nested = [[[[0, 1], [2, 3]], [[4, 5], [6, 7]], [[8, 9], [10, 11]]]]
    bodies: list[tuple[bytes, int | None]] = [
        (body_of({**tensor, "data": PIXELS}), None),
        (body_of({**tensor, "data": nested}), None),
        binary(tensor, raw),
    ]
    for body in bodies:
        asked = parse_infer(*body)
        assert [bytes(image) for image in asked.images] == [raw]
        assert asked.preprocessed


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, [RequestedOutput("logits"), RequestedOutput("probabilities")]),
        (
            {"parameters": {"binary_data_output": True}},
            [RequestedOutput("logits", True), RequestedOutput("probabilities", True)],
        ),
        (
            {
                "parameters": {"binary_data_output": True},
                "outputs": [
                    {"name": "probabilities", "parameters": {"binary_data": False}},
                    {"name": "logits", "parameters": {"classification": 2}},
                ],
            },
            [RequestedOutput("probabilities"), RequestedOutput("logits", True, 2)],
        ),
    ],
)
def test_outputs_come_as_they_are_asked_for(
    fields: dict[str, Any], expected: list[RequestedOutput]
) -> None:
    asked = parse_infer(body_of(image_input([1], data=["eA=="]), id="a", **fields), None)
    assert asked.outputs == expected
    assert asked.id == "a"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ((body_of(image_input([2], data=["eA=="])), None), "wrong-data"),
        ((body_of(image_input([1], data=[7])), None), "wrong-data"),
        ((body_of(image_input([1], data=["?"])), None), "invalid-base64"),
        ((body_of(image_input([1])), None), "wrong-data"),
        ((body_of(image_input([0], data=[])), None), "wrong-shape"),
        ((body_of(image_input([33], data=["eA=="] * 33)), None), "wrong-shape"),
        ((body_of(image_input([1, 2], data=["eA==", "eA=="])), None), "wrong-shape"),
        ((body_of({**image_input([1], data=["eA=="]), "datatype": "FP32"}), None), "unknown-input"),
        (binary(image_input([1]), b"\x05\x00\x00\x00four"), "wrong-data"),
        (binary(image_input([2]), elements(b"one")), "wrong-data"),
        (binary(image_input([1]), elements(b"one") + b"more"), "wrong-data"),
        (binary(image_input([1], data=["eA=="]), elements(b"x")), "wrong-data"),
        ((body_of(image_input([1], data=["eA=="])), 10_000), "too-long"),
        (
            (body_of(image_input([1], parameters={"shared_memory_region": "a"})), None),
            "wrong-data",
        ),
        (
            (body_of({"name": "pixels", "shape": [1, 3, 2, 1], "datatype": "FP32"}), None),
            "wrong-shape",
        ),
        (
            (
                body_of(
                    {
                        "name": "pixels",
                        "shape": [1, 3, 2, 2],
                        "datatype": "FP32",
                        "data": [1e300] * 12,
                    }
                ),
                None,
            ),
            "wrong-data",
        ),
        (
            (body_of(image_input([1], data=["eA=="]), outputs=[{"name": "features"}]), None),
            "unknown-output",
        ),
    ],
)
def test_a_tensor_that_is_not_what_it_says_is_refused(
    body: tuple[bytes, int | None], code: str
) -> None:
    with pytest.raises(ValidationFailed) as refused:
        parse_infer(*body)
    assert [fault["code"] for fault in refused.value.faults] == [code]


@given(st.binary(max_size=200), st.integers(0, 200))
def test_nothing_but_our_errors_escapes(body: bytes, json_bytes: int) -> None:
    with pytest.raises(GraftError):
        parse_infer(body, json_bytes)


def test_an_answer_is_json_and_then_the_bytes_in_the_order_of_the_outputs() -> None:
    values = {"logits": [[0.5, -1.0]], "probabilities": [[0.25, 0.75]]}
    requested = [
        RequestedOutput("probabilities", True),
        RequestedOutput("logits"),
        RequestedOutput("probabilities", True, 9),
    ]
    body, json_bytes = write_answer({"model_name": "m"}, requested, values, LABELS)
    assert json_bytes is not None
    outputs = json.loads(body[:json_bytes])["outputs"]
    text = "0.750000:1:bée".encode()
    assert outputs == [
        {
            "name": "probabilities",
            "datatype": "FP32",
            "shape": [1, 2],
            "parameters": {"binary_data_size": 8},
        },
        {"name": "logits", "datatype": "FP32", "shape": [1, 2], "data": [0.5, -1.0]},
        {
            "name": "probabilities",
            "datatype": "BYTES",
            "shape": [1, 2],
            "parameters": {"binary_data_size": len(elements(text, b"0.250000:0:ant"))},
        },
    ]
    assert body[json_bytes:] == struct.pack("<2f", 0.25, 0.75) + elements(text, b"0.250000:0:ant")


def test_an_answer_without_binary_outputs_is_json_alone() -> None:
    values = {"logits": [[1.0, 2.0]], "probabilities": [[0.5, 0.5]]}
    body, json_bytes = write_answer({}, [RequestedOutput("logits", False, 1)], values, LABELS)
    assert json_bytes is None
    assert json.loads(body)["outputs"][0]["data"] == ["2.000000:1:bée"]
