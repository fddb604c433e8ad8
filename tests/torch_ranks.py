"""Groups of processes that run a `SyncBatchNorm` on their parts of a batch; started by a test.

python torch_ranks.py FOLDER: imports PyTorch once, and forks the processes of each group.  They
meet through a file in FOLDER, and each writes what it computed to FOLDER/WORLD-RANK.npz.
"""

from __future__ import annotations

import copy
import os
import sys
import traceback
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

import bncore
import bncore.torch
from bncore.torch import sync_ops

SHAPE = (12, 5, 4, 3)
EPS = 1e-5
MOMENTUM = 0.3
STEPS = 2
# Where each rank's part of the batch starts; uneven, and with four processes one part is empty.
SPLITS = {2: [0, 5, 12], 4: [0, 1, 6, 6, 12]}
WORLDS = tuple(SPLITS)


def data() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, dy and the parameters (2, C), float64, the mean far from 0."""
    rng = np.random.default_rng(5)
    return (
        rng.normal(100.0, 2.0, (STEPS, *SHAPE)),
        rng.standard_normal((STEPS, *SHAPE)),
        rng.standard_normal((2, SHAPE[1])),
    )


def ragged(world: int) -> list[list[np.ndarray]]:
    """Values of each channel in each process: another number of them everywhere, or none."""
    rng = np.random.default_rng(world)
    numbers = rng.integers(0, 6, (world, 4)) * rng.integers(0, 2, (world, 4))
    numbers[:, 0], numbers[0, 1] = 0, 3  # a channel without a value in all, and one with some
    return [[rng.normal(1e3, 2.0, n) for n in row] for row in numbers]


def merged(rank: int, world: int) -> dict[str, np.ndarray]:
    """Merge moments whose channels have counts of their own in each process."""
    mine = ragged(world)[rank]
    means = [values.mean() if len(values) else 0.0 for values in mine]
    m2s = [float(((values - m) ** 2).sum()) for values, m in zip(mine, means, strict=True)]
    local = bncore.Moments(list(map(len, mine)), means, m2s)
    moments, weighs = sync_ops.merged_moments(local, rank == 1, sync_ops.group_name(None))
    assert weighs
    return {f"ragged {name}": getattr(moments, name) for name in ("count", "mean", "m2")}


def run(rank: int, world: int, folder: Path) -> None:
    """Do the part of one process."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meet{world}", rank=rank, world_size=world)
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
    found |= short(x[0, part], dy[0, part])
    found |= merged(rank, world)
    found |= refused(x[0, :3].copy(), rank == world - 1)
    found |= counted(layer, x[0, part], dy[0, part], part)
    found |= again(x[0, part], dy[0, part], part)
    if world == 2:  # to import the compiler takes longer than all of the rest
        found |= compiled(x[0, part], dy[0, part], part)
    found |= recalibrated([x[0, part], x[1, part][:2]], rank)
    try:
        model.train()(torch.zeros(int(rank == 0), SHAPE[1], 1, 1).double())
    except ValueError as error:
        found["one value"] = np.array(str(error))
    np.savez(folder / f"{world}-{rank}.npz", **found)
    dist.destroy_process_group()


def recalibrated(parts: list[np.ndarray], rank: int) -> dict[str, np.ndarray]:
    """Recalibrate two layers in a row; then again, where the last process fails."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.BatchNorm2d(SHAPE[1]), torch.nn.ReLU(), torch.nn.BatchNorm2d(SHAPE[1])
    ).double()
    batches = [torch.from_numpy(part) for part in parts if len(part)]
    world = dist.group.WORLD
    bncore.torch.recalibrate(model, batches, process_group=world)
    state = {name: value.numpy().copy() for name, value in model.state_dict().items()}

    def fails():
        yield from batches
        if rank == world.size() - 1:
            raise OSError("the disk is gone")

    try:
        bncore.torch.recalibrate(model[:1], fails(), process_group=world)
    except (OSError, RuntimeError) as error:
        state["failure"] = np.array(f"{type(error).__name__}: {error}")
    assert all(np.array_equal(v, state[n]) for n, v in model.state_dict().items())
    return {f"recalibrated {name}": value for name, value in state.items()}


def refused(x: np.ndarray, bad: bool) -> dict[str, np.ndarray]:
    """Give one process a batch that is refused; afterwards all take a step with a good one."""
    layer = bncore.torch.SyncBatchNorm(SHAPE[1], dtype=torch.float64)
    good = torch.from_numpy(x)
    hole = good.clone()
    hole[0, 2, 0, 0] = torch.nan
    given = {
        "nan": (hole if bad else good, {"nan_policy": "raise"}),
        "weights": (good, {"weights": torch.full((1, 1, 1, 1), -1.0 if bad else 1.0)}),
        "mask": (good, {"where": torch.ones(7 if bad else 3, dtype=torch.bool)}),
        "dtype": (good.int() if bad else good, {}),
        "dimensions": (good[0, 0, 0] if bad else good, {}),
        "channels": (good[:, :2] if bad else good, {}),
    }
    bare = bncore.torch.SyncBatchNorm(SHAPE[1], affine=False, track_running_stats=False)
    found = {}
    for name, (batch, options) in given.items():
        try:
            (bare if name == "channels" else layer)(batch, **options)
        except Exception as error:
            found[f"refused {name}"] = np.array(f"{type(error).__name__}: {error}")
    assert layer.num_batches_tracked == 0 and not layer.running_mean.any()
    return found | {"refused after": layer(good).detach().numpy()}


def short(x: np.ndarray, dy: np.ndarray) -> dict[str, np.ndarray]:
    """Take a step in bfloat16, with parameters and running statistics in float16."""
    layer = bncore.torch.SyncBatchNorm(SHAPE[1], EPS, dtype=torch.float16)
    leaf = torch.from_numpy(x).bfloat16().requires_grad_()
    y = layer(leaf)
    y.backward(torch.from_numpy(dy).bfloat16())
    tensors = {"y": y, "dx": leaf.grad, "dweight": layer.weight.grad, "mean": layer.running_mean}
    found = {f"short {name}": t.detach().double().numpy() for name, t in tensors.items()}
    return found | {"short dtypes": np.array([str(t.dtype) for t in tensors.values()])}


def mask() -> np.ndarray:
    """What counts of the batch, for all channels; everything in the first samples."""
    found = np.random.default_rng(7).random((SHAPE[0], 1, *SHAPE[2:])) < 0.7
    found[: SPLITS[2][1]] = True
    return found


def counted(
    layer: torch.nn.Module, x: np.ndarray, dy: np.ndarray, part: slice
) -> dict[str, np.ndarray]:
    """Take a step with masks, which processes leave out where everything counts."""
    layer = copy.deepcopy(layer).train()
    layer.reset_running_stats()
    layer.zero_grad()
    where = torch.from_numpy(mask()[part])
    leaf = torch.from_numpy(x).requires_grad_()
    y = layer(leaf, None if where.numel() and where.all() else where, fill=0.5)
    y.backward(torch.from_numpy(dy))
    tensors = {"y": y, "dx": leaf.grad, "dweight": layer.weight.grad, "dbias": layer.bias.grad}
    tensors |= {"mean": layer.running_mean, "var": layer.running_var}
    return {f"counted {name}": t.detach().numpy().copy() for name, t in tensors.items()}


def orders(
    layer: torch.nn.Module, x: torch.Tensor, dy: torch.Tensor, *where: torch.Tensor
) -> dict[str, np.ndarray]:
    """Differentiate three times; each loss is a sum, so that the parts of a batch add up."""
    layer.zero_grad()
    x = x.clone().requires_grad_()
    y = layer(x, *where)
    along = torch.arange(1.0, SHAPE[1] + 1, dtype=torch.float64)
    first = torch.autograd.grad(
        (y.sin() * dy).sum(), (x, layer.weight, layer.bias), create_graph=True
    )
    loss = (first[0] ** 2).sum() + (first[1] * along).sum() + (first[2] * along).sum()
    second = torch.autograd.grad(loss, (x, layer.weight), create_graph=True)
    (1e-2 * (second[0] ** 2).sum() + (second[1] * along).sum()).backward()
    found = {"first": first[0], "first weight": first[1], "second": second[0]}
    found |= {"second weight": second[1], "third": x.grad, "third weight": layer.weight.grad}
    return {name: value.detach().numpy().copy() for name, value in found.items()}


def again(x: np.ndarray, dy: np.ndarray, part: slice) -> dict[str, np.ndarray]:
    """Gradients of gradients, without and with a mask."""
    layer = bncore.torch.SyncBatchNorm(SHAPE[1], 0.1, dtype=torch.float64)
    given = torch.from_numpy(x), torch.from_numpy(dy)
    plain = orders(layer, *given)
    masked = orders(layer, *given, torch.from_numpy(mask()[part]))
    found = {f"plain {name}": value for name, value in plain.items()}
    return found | {f"masked {name}": value for name, value in masked.items()}


def compiled(x: np.ndarray, dy: np.ndarray, part: slice) -> dict[str, np.ndarray]:
    """Steps of one graph, without and with a mask; `run` is twice differentiable."""
    found = {}
    where = torch.from_numpy(mask()[part])
    for case, given in (("plain", ()), ("masked", (where,))):
        layer = bncore.torch.SyncBatchNorm(SHAPE[1], 0.1, dtype=torch.float64)
        run = torch.compile(
            lambda x, layer=layer, given=given: layer(x.sin(), *given, fill=0.5).cos(),
            backend="eager",
            fullgraph=True,
        )
        leaf = torch.from_numpy(x).requires_grad_()
        y = run(leaf)
        loss = (y * torch.from_numpy(dy)).sum()
        (gradient,) = torch.autograd.grad(loss, leaf, create_graph=True)
        (gradient**2).sum().backward()
        found |= {f"compiled {case} y": y.detach().numpy()}
        found |= {f"compiled {case} second": leaf.grad.numpy()}
    return found | whole_graphs(layer, x, dy, where)


def whole_graphs(
    layer: torch.nn.Module, x: np.ndarray, dy: np.ndarray, where: torch.Tensor
) -> dict[str, np.ndarray]:
    """Take the same step eagerly, and in graphs of forward and backward."""
    found = {}
    for name in ("eager", "aot_eager"):
        layer.reset_running_stats()
        layer.zero_grad()
        run = layer
        if name != "eager":
            run = torch.compile(layer, backend=name, fullgraph=True)
        leaf = torch.from_numpy(x).requires_grad_()
        y = run(leaf, where, fill=0.5)
        y.backward(torch.from_numpy(dy))
        tensors = {"y": y, "dx": leaf.grad, "dweight": layer.weight.grad, **layer.state_dict()}
        found |= {f"{name} {key}": t.detach().numpy().copy() for key, t in tensors.items()}
    return found


def forked(rank: int, world: int, folder: Path) -> int:
    """Do that in a child, and return its id."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            run(rank, world, folder)
            code = 0
        except BaseException:
            traceback.print_exc()
        os._exit(code)
    return child


def main(folder: Path) -> int:
    """Run the groups one after the other; 0 where no process failed."""
    worst = 0
    for world in WORLDS:
        for child in [forked(rank, world, folder) for rank in range(world)]:
            worst = max(worst, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    return worst


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
