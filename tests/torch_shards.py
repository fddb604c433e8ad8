"""Two processes that train a sharded model, of PyTorch's batch norm and of bncore's; by a test.

python torch_shards.py FOLDER: prints what differs, and nothing if all is well.
"""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

import bncore.torch

WORLD = 2


def model() -> torch.nn.Module:
    """The same weights in every process and call."""
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(6, 4),
        torch.nn.BatchNorm1d(4),
        torch.nn.Sequential(torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2)),
    )


def whole(net: torch.nn.Module) -> torch.nn.Module:
    """FSDP's first version, around the whole model."""
    cpu = torch.device("cpu")
    return FullyShardedDataParallel(net, device_id=cpu, use_orig_params=True)


def parts(net: torch.nn.Module) -> torch.nn.Module:
    """FSDP's second version, around a layer, a block and the model."""
    mesh = init_device_mesh("cpu", (WORLD,))
    for part in (net[1], net[2], net):
        fully_shard(part, mesh=mesh)
    return net


def steps(net: torch.nn.Module) -> list[torch.Tensor]:
    """Two steps on the same data in every process, so that synchronized statistics are the same."""
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    found = []
    for seed in range(2):
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        y = net(x)
        y.square().sum().backward()
        optimizer.step()
        found.append(y.detach())
    return [*found, net.eval()(x).detach()]


def run(rank: int, folder: Path) -> None:
    """Do the part of one process."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=WORLD)
    for shard in (whole, parts):
        expected = steps(shard(model()))
        for sync in (False, True):
            for late in (False, True):  # convert what is sharded already
                net = model()
                net = net if late else bncore.torch.convert(net, sync=sync)
                net = shard(net)
                net = bncore.torch.convert(net, sync=sync) if late else net
                found = steps(net)[: 2 if sync else 3]  # their running variances differ
                torch.testing.assert_close(found, expected[: len(found)])
                if late:
                    assert bncore.torch.revert(net) is net
                    assert not bncore.torch.report(net).converted
    dist.destroy_process_group()


def forked(rank: int, folder: Path) -> int:
    """Do that in a child, and return its id."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            warnings.simplefilter("ignore")  # of FSDP on the CPU
            run(rank, folder)
            code = 0
        except BaseException:
            traceback.print_exc()
        os._exit(code)
    return child


if __name__ == "__main__":
    children = [forked(rank, Path(sys.argv[1])) for rank in range(WORLD)]
    sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
