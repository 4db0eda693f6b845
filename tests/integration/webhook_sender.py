"""Senders in processes of their own, one after another, each of which a fault point may kill.

    python -m tests.integration.webhook_sender TIMES DATABASE_URL FAULTS ONCE_FOLDER

Prints the status of each; they are forked, so that imports are paid for once.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from jobs.store.database import Database
from jobs.webhooks.sender import SenderLimits, WebhookSender
from models_cache import faults
from models_cache.egress_policy import EgressPolicy


def send(database_url: str, plan: str, once_folder: str) -> None:
    faults.arm(plan, Path(once_folder))
    limits = SenderLimits(timeout_seconds=0.5, first_wait_seconds=0.001)
    WebhookSender(Database(database_url), EgressPolicy.of(["127.0.0.1"]), limits).start()
    time.sleep(20)  # until it is killed


def main(times: str, *arguments: str) -> None:
    for _ in range(int(times)):
        child = os.fork()
        if child == 0:
            send(*arguments)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status))  # noqa: T201 - what the test reads


if __name__ == "__main__":
    main(*sys.argv[1:])
