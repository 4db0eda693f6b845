"""Serving, measured from outside: a real `graft serve`, photographs in, JSON out, over HTTP.

    python benchmarks/serving.py WHAT... --folder FOLDER --archive hymenoptera.zip \
        --weights WEIGHTS_FOLDER [--seconds N] [--rounds N] [--json FILE]

WHAT is one or more of:

    bare      throughput of one model against a bare loop without HTTP (`serving_bare.py`)
    litserve  the same model and weights behind LitServe (`--litserve-python` of its environment)
    thousand  1,000 head-only models under uniform traffic against one model
    many      10,000 registered models: start, listing, prediction
    aliases   an alias switched 1,000 times under 16 clients
    cold      start to ready; the first prediction of a head that is not loaded
    soak      --seconds (default 600) at 70 % of the capacity measured just before
    training  latency while a fine-tune runs on the same cores, against none

The folder keeps a service's data between runs: made at the first one, which needs minutes. What is
compared runs by turns in one run, and ratios are what counts. The load generator runs on the same
cores; `generator_cores` says how much of them it took.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

_REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(_REPOSITORY), str(_REPOSITORY / "benchmarks")]

import serving_setup as setup  # noqa: E402 - after the path
from serving_models import aliases, many, thousand  # noqa: E402
from serving_setup import Bench  # noqa: E402
from serving_speed import Json, bare, litserve  # noqa: E402
from serving_time import cold, soak, training  # noqa: E402

_ALL: dict[str, Callable[[Bench], Json]] = {
    each.__name__: each for each in (bare, litserve, thousand, many, aliases, cold, soak, training)
}


def main() -> None:
    """Run what was asked for; print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("what", nargs="+", choices=["prepare", *_ALL])
    parser.add_argument("--folder", type=Path, required=True, help="kept between runs")
    parser.add_argument("--archive", type=Path, required=True, help="a zip of train/ and val/")
    parser.add_argument("--weights", type=Path, required=True, help="a folder with catalog.json")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seconds", type=float, default=8.0, help="of one measurement")
    parser.add_argument("--soak-seconds", type=float, default=600.0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--litserve-python", help="the interpreter of LitServe's environment")
    parser.add_argument("--json", type=Path, help="where the figures are written")
    options = parser.parse_args()
    setup.prepare(options.folder, options.archive, options.weights, options.threads)
    report = {}
    bench = Bench(options)
    for name in options.what:
        if name == "prepare":
            continue
        report[name] = _ALL[name](bench)
        print(json.dumps({name: report[name]}, indent=2), flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
