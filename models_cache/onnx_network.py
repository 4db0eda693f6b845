"""Networks in ONNX: writing them with torch, running them with ONNX Runtime. Both are optional."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

_OPSET = 17


def onnx_bytes(
    network: nn.Module,
    example: Tensor,
    names: tuple[str, Sequence[str]],
    free_axes: Mapping[str, Mapping[int, str]],
) -> bytes:
    """Return a network in ONNX.

    By the exporter that traces: it takes 0.3 to 0.6 s where the newer one takes 14 to 16 s.

    Args:
        network: In eval mode, on the CPU.
        example: An input.
        names: Of the input, and of the outputs.
        free_axes: By input or output, the axes that may have any length, with names for them.
    """
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is announced to go, and tells of every constant
        torch.onnx.export(
            network,
            (example,),
            buffer,  # type: ignore[arg-type]  # this exporter takes files as well
            dynamo=False,
            input_names=[names[0]],
            output_names=list(names[1]),
            dynamic_axes={name: dict(axes) for name, axes in free_axes.items()},
            opset_version=_OPSET,
        )
    return buffer.getvalue()


def open_session(network: bytes | str, threads: int) -> Any:  # noqa: ANN401 - the package is untyped
    """Return a session of ONNX Runtime on the CPU, which tells nobody of it.

    Args:
        network: ONNX, or the path of a file with it.
        threads: Of one pass.
    """
    # Read when it is imported: else it keeps an id and events below the home folder and sends them
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime  # noqa: PLC0415 - optional, and nothing else needs it

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors: it warns of machines that it cannot look up
    # Threads that wait busily would take the cores from training and serving; measured, the
    # passes are no slower without.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(network, options, providers=["CPUExecutionProvider"])
