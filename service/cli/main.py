"""`graft`: runs a command, and imports no more than that one needs.

A service is ready when its slowest process is: each of them, and the supervisor before them, starts
half a second to a second earlier without what only the other commands need.
"""

from __future__ import annotations

import sys

from jobs.keys import without_keys
from models_cache.errors import GraftError
from service.cli import processes


def main() -> None:
    """Run a command; an error that a person can act on is one line and status 1."""
    try:
        if sys.argv[1:2] and sys.argv[1] in processes.NAMES:
            processes.app()
        else:
            from service.cli import commands  # noqa: PLC0415 - see above

            commands.run()
    except GraftError as error:
        sys.exit(f"graft: {without_keys(str(error))}")


if __name__ == "__main__":
    main()
