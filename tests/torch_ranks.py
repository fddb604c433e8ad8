"""One process of a group that runs a `SyncBatchNorm` on its part of a batch; started by a test.

python torch_ranks.py RANK WORLD FOLDER: meets the others through a file in FOLDER, and writes what
it computed to FOLDER/RANK.npz.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

SHAPE = (12, 5, 4, 3)
EPS = 1e-5
MOMENTUM = 0.3
STEPS = 2
# Where each rank's part of the batch starts; uneven, and with four processes one part is empty.
SPLITS = {1: [0, 12], 2: [0, 5, 12], 4: [0, 1, 6, 6, 12]}


def data() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, dy and the parameters (2, C), float64, the mean far from 0."""
    rng = np.random.default_rng(5)
    return (
        rng.normal(100.0, 2.0, (STEPS, *SHAPE)),
        rng.standard_normal((STEPS, *SHAPE)),
        rng.standard_normal((2, SHAPE[1])),
    )


def main(rank: int, world: int, folder: Path) -> None:
    import torch
    import torch.distributed as dist

    import bncore.torch

    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=world)
    x, dy, (weight, bias) = data()
    part = slice(*SPLITS[world][rank : rank + 2])
    model = torch.nn.Sequential(torch.nn.BatchNorm2d(SHAPE[1], EPS, MOMENTUM, dtype=torch.float64))
    bncore.torch.convert(model, sync=True)
    layer = model[0]
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
        layer.bias.copy_(torch.from_numpy(bias))
    found = {"kind": np.array(type(layer).__name__)}
    for step in range(STEPS):
        mine = torch.from_numpy(x[step, part]).requires_grad_()
        if step:  # channels-last memory in the second step
            mine = mine.detach().to(memory_format=torch.channels_last).requires_grad_()
        layer.zero_grad()
        y = model(mine)
        y.backward(torch.from_numpy(dy[step, part]))
        found |= {
            f"y{step}": y.detach().numpy(),
            f"dx{step}": mine.grad.numpy(),
            f"dweight{step}": layer.weight.grad.numpy().copy(),
            f"dbias{step}": layer.bias.grad.numpy().copy(),
        }
    model.eval()
    found["evaluated"] = model(torch.from_numpy(x[0, part])).detach().numpy()
    for name, value in layer.state_dict().items():
        found[name] = value.numpy()
    try:
        model.train()(torch.zeros(world if world == 1 else int(rank == 0), SHAPE[1], 1, 1).double())
    except ValueError as error:
        found["one value"] = np.array(str(error))
    np.savez(folder / f"{rank}.npz", **found)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
