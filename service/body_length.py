"""How long a request says its body is: believed where it says too much, proved wrong elsewhere."""

from __future__ import annotations

from fastapi import Request


def declared_bytes(request: Request) -> int:
    """Return `Content-Length`, 0 where there is none; its form was checked by the parser."""
    declared = request.headers.get("content-length", "")
    return int(declared) if declared.isdecimal() else 0
