"""The same fine-tuning job on the CPU and on a GPU: how many times faster, and as good?

    python benchmarks/cpu_vs_gpu.py --archive hymenoptera.zip --weights WEIGHTS_FOLDER [--epochs 3]

Recipe `finetune` in a training child on each device: head on frozen features, then the whole
network, evaluation and publication. Seconds are behind the imports, as in a fork of the warm
server, and contain what a job on a GPU pays for it: the context of CUDA, and its first calls.

Prints seconds by phase, val accuracies and the ratio; `--json FILE` writes them with the card's
name. Without a GPU it says so and ends with status 1.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

_REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(_REPOSITORY), str(_REPOSITORY / "benchmarks")]

import finetune_vs_fastai as finetune  # noqa: E402 - after the path
import head_vs_tutorial as tutorial  # noqa: E402
import torch  # noqa: E402


def main() -> None:
    """Run both, print the ratio, write the JSON."""
    options = _parse_options()
    if not torch.cuda.is_available():
        sys.exit("torch finds no CUDA device: there is nothing to compare with")
    report: dict[str, Any] = {
        "machine": tutorial.machine(options),
        "architecture": options.architecture,
        "epochs": options.epochs,
        "batch_size": options.batch_size,
    }
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        dataset = tutorial.timed_ingest(work, options, report)
        for device in ("cpu", options.device):  # features of one are none of the other
            chosen = argparse.Namespace(**{**vars(options), "device": device})
            report[device] = finetune.timed_job(work, chosen, dataset)
    cpu, gpu = report["cpu"], report[options.device]
    report["times_faster"] = {
        "job": round(cpu["job_seconds"] / gpu["job_seconds"], 2),
        **{
            name: round(seconds / gpu["phases"][name], 2)
            for name, seconds in cpu["phases"].items()
            if gpu["phases"].get(name)
        },
    }
    text = json.dumps(report, indent=2)
    print(text)
    if options.json is not None:
        options.json.write_text(text + "\n")


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    finetune.add_options(parser)
    parser.add_argument("--device", default="cuda", help="cuda or cuda:<n>, against the CPU")
    return parser.parse_args()


if __name__ == "__main__":
    main()
