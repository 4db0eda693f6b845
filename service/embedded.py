"""A whole service inside a block of code: for the demo, benchmarks and notebooks."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from jobs import processes
from service.free_port import free_port
from service.settings import child_environment, embedded_settings

_STOP_SECONDS = 15.0
_SHOWN_LOG_CHARACTERS = 4000


@contextmanager
def embedded(data_folder: Path, weights_catalogues: Sequence[str] = ()) -> Iterator[str]:
    """Run `graft serve` on a free port of this machine and yield its URL.

    It dies with this process, however that ends; so it is started from the main thread. If the
    block ends with an error, the end of the service's log goes to standard error.

    Args:
        data_folder: Where it keeps everything; its log is beside it.
        weights_catalogues: JSON files that add weights, besides those of the environment.
    """
    port = free_port("127.0.0.1")
    settings = embedded_settings(data_folder, port, tuple(weights_catalogues))
    data_folder.mkdir(parents=True, exist_ok=True)
    log_path = data_folder.with_name(f"{data_folder.name}.log")
    command = [sys.executable, "-P", "-m", "service.cli.main", "serve"]
    with log_path.open("wb") as log:
        output = processes.Inherited(output=log.fileno())
        process = processes.spawn(command, child_environment(settings), output)
    try:
        yield f"http://{settings.host}:{settings.port}"
    except BaseException:
        sys.stderr.write(log_path.read_text(errors="replace")[-_SHOWN_LOG_CHARACTERS:])
        raise
    finally:
        process.signal(signal.SIGTERM)
        process.wait(_STOP_SECONDS)
        process.kill_group(signal.SIGKILL)  # nothing, if it has ended
        process.wait(_STOP_SECONDS)
        process.reap()
        process.close()
