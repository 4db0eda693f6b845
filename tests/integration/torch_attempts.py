"""A child that trains for one step, as a real one does."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from tests.integration.attempts import tell


def main(spec_path: str) -> None:
    spec = json.loads(Path(spec_path).read_text())
    tell(spec, loss=None)
    torch.set_num_threads(2)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    )
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    loss = network(torch.randn(8, 3, 64, 64)).square().mean()
    loss.backward()
    optimizer.step()
    tell(spec, loss=loss.item())
