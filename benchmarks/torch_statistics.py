"""Measure bncore.torch's recalibrate and var_mean against PyTorch's update_bn and var_mean.

    python benchmarks/torch_statistics.py [--size 64] [--batches 6] [--threads 1,2]

First a ResNet-50 with random weights, which gets batches of uneven sizes from a shifted domain.
Its running statistics are compared with float64 statistics by hand: those of the very values that
each layer sees in evaluation, summed by PyTorch in float64, and those that a float64 copy of the
network sees, which adds the rounding of float32 activations.
An error of a mean is relative to the standard deviation, an error of a variance to the variance.
Then times of variance and mean in one call, of shapes of the network; medians, in turns.
"""

from __future__ import annotations

import argparse
import copy
import time

import torch
from torch import nn

import bncore.torch
from steps import made_on, medians
from torch_networks import resnet50

Statistics = dict[str, tuple[torch.Tensor, torch.Tensor]]
SIZES = (16, 3, 8, 1, 12, 5)


def norms(model: nn.Module) -> dict[str, nn.Module]:
    """Return the batch norm layers by name."""
    kind = nn.modules.batchnorm._BatchNorm
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, kind)}


def by_hand(model: nn.Module, batches: list[torch.Tensor]) -> Statistics:
    """Return float64 mean and variance of what each layer sees in evaluation, of all batches."""
    count: dict[str, int] = {}
    sums: dict[str, list[torch.Tensor]] = {}
    centers: dict[str, torch.Tensor] = {}
    layers = norms(model)

    def look(name: str, x: torch.Tensor) -> None:
        wide = x.double().transpose(0, 1).flatten(1)
        center = centers.setdefault(
            name, wide.mean(1)
        )  # of the first batch, so that little cancels
        away = wide - center[:, None]
        count[name] = count.get(name, 0) + wide.shape[1]
        for total, part in zip(
            sums.setdefault(name, [torch.zeros_like(center) for _ in range(2)]),
            (away.sum(1), away.square().sum(1)),
            strict=True,
        ):
            total += part

    hooks = [
        layer.register_forward_pre_hook(lambda _, given, name=name: look(name, given[0]))
        for name, layer in layers.items()
    ]
    with torch.no_grad():
        for batch in batches:
            model.eval()(batch)
    for hook in hooks:
        hook.remove()
    found = {}
    for name, (total, squares) in sums.items():
        shift = total / count[name]
        var = (squares - total * shift) / (count[name] - 1)
        found[name] = centers[name] + shift, var
    return found


def errors(model: nn.Module, expected: Statistics) -> tuple[float, float]:
    """Return the largest errors of a mean and of a variance."""
    worst_mean = worst_var = 0.0
    for name, layer in norms(model).items():
        mean, var = expected[name]
        worst_mean = max(worst_mean, float(((layer.running_mean - mean) / var.sqrt()).abs().max()))
        worst_var = max(worst_var, float((layer.running_var / var - 1).abs().max()))
    return worst_mean, worst_var


def recalibration(size: int, number: int) -> None:
    """Print the errors of both, and the time that each takes."""
    torch.manual_seed(0)
    model = resnet50(fused=False)
    batches = [3 * torch.randn(n, 3, size, size) + 5 for n in SIZES[:number]]
    ways = {
        "recalibrate": lambda m: bncore.torch.recalibrate(m, batches),
        "recalibrate, one pass": lambda m: bncore.torch.recalibrate(m, batches, one_pass=True),
        "update_bn": lambda m: torch.optim.swa_utils.update_bn(batches, m),
    }
    print(f"ResNet-50, batches of {SIZES[:number]} images, {size} x {size}, {made_on('torch')}")
    exact = None
    for name, way in ways.items():
        mine = copy.deepcopy(model).train()
        start = time.perf_counter()
        way(mine)
        taken = time.perf_counter() - start
        if exact is None:
            exact = by_hand(mine, batches)
            wide = copy.deepcopy(mine).double()
            through = errors(mine, by_hand(wide, [batch.double() for batch in batches]))
            assert max(errors(mine, exact)) <= 1e-6
            print(
                f"{name}, against a float64 copy: mean {through[0]:.1e}, variance {through[1]:.1e}"
            )
        mean, var = errors(mine, exact)
        print(f"{name}: mean {mean:.1e}, variance {var:.1e}, {taken:.1f} s", flush=True)


def one_call(threads: int) -> None:
    """Print times of variance and mean."""
    torch.set_num_threads(threads)
    print(f"variance and mean, float32, threads {threads}, ms:")
    for shape, dim in (((32, 64, 56, 56), (0, 2, 3)), ((4096, 1024), 0), ((4096, 1024), 1)):
        x = torch.randn(shape) + 3
        torch.testing.assert_close(bncore.torch.var_mean(x, dim), torch.var_mean(x, dim))
        times = medians(
            {
                "bncore.torch.var_mean": lambda x=x, dim=dim: bncore.torch.var_mean(x, dim),
                "torch.var_mean": lambda x=x, dim=dim: torch.var_mean(x, dim),
                "torch.var, then torch.mean": lambda x=x, dim=dim: (x.var(dim), x.mean(dim)),
            },
            7,
        )
        shown = ", ".join(f"{name} {1e3 * t:.2f}" for name, t in times.items())
        print(f"  {shape}, dim={dim}: {shown}", flush=True)


def main() -> None:
    """Run both parts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=64, help="of the images")
    parser.add_argument("--batches", type=int, default=len(SIZES))
    parser.add_argument("--threads", default="1,2")
    options = parser.parse_args()
    for threads in map(int, options.threads.split(",")):
        one_call(threads)
    recalibration(options.size, options.batches)


if __name__ == "__main__":
    main()
