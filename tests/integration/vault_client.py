"""A process that asks the vault for one file: `python -m tests.integration.vault_client SPEC`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from models_cache import faults
from models_cache.catalogue import WeightsInfo
from models_cache.egress_policy import EgressPolicy
from models_cache.weights import WeightsVault


def main() -> None:
    spec = json.loads(sys.argv[1])
    faults.arm(spec["faults"], Path(spec["faults_folder"]))
    vault = WeightsVault(
        Path(spec["root"]),
        official_url_prefix=spec["official"],
        egress=EgressPolicy.of(["127.0.0.1"]),
    )
    path = vault.ensure(WeightsInfo.from_json(spec["info"]))
    sys.stdout.write(str(path))


if __name__ == "__main__":
    main()
