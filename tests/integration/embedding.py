"""Runs a service with `embedded` until it is killed: `python embedding.py FOLDER`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from service.embedded import embedded

with embedded(Path(sys.argv[1])) as url:
    sys.stdout.write(f"{url}\n")
    sys.stdout.flush()
    time.sleep(600)
