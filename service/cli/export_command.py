"""`graft export`: a version as a zip that others run without Graft."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from service.cli.client_commands import Key, Url, follow_job
from service.client import DEFAULT_URL, Graft


class Format(StrEnum):
    """What the graph is written as."""

    ONNX = "onnx"
    TORCH_EXPORT = "torch_export"


def export(
    model: Annotated[str, typer.Argument(help="Name of the model.")],
    version: Annotated[int | None, typer.Option(help="Default: the one that is served.")] = None,
    format_: Annotated[Format, typer.Option("--format")] = Format.ONNX,
    output: Annotated[Path | None, typer.Option(help="Default: MODEL-VERSION-FORMAT.zip.")] = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Export a model to ONNX or torch.export: a zip with an example that needs no Graft."""
    with Graft(url, key=key) as graft:
        number = version or int(graft.model(model)["aliases"]["default"])
        made = graft.export(model, number, format_.value)
        follow_job(graft, made["id"])
        path = output or Path(f"{model}-{number}-{format_.value}.zip")
        print(graft.download_export(model, number, made["id"], path))
