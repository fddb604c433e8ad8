"""Models of torchvision and timm before and after `bncore.torch.convert`: numbers, and ways.

    python benchmarks/torch_zoo.py [--quick] [--write] [--part numbers|ways|both] [--size 64]
        [--models "timm resnet18,timm dla34"]

Numbers: each architecture computes a batch in training and in evaluation, in both memory formats.
Outputs and gradients are compared with those of a float64 copy, for PyTorch and for bncore: the
errors are the largest difference, relative to the largest value.  Those of the output are the
largest of eight batches, and those of gradients the first quartile: in some batches rounding moves
a value across 0 before a ReLU, which changes gradients by thousands of roundings in either library.
A layer that bncore does not compute is named.

Ways: what people do to a model (copies, compilers, exporters, tracers, shards),
each done to the model of PyTorch and to the converted one, which have to agree with the same model
in eager mode.  Weights are random and images small, so that all of it takes some minutes on one
processor.

--quick takes two small models.  --write puts the tables into docs/torch-models.md.  The exit code
is 1 if a layer was left, if an error of bncore is more than twice the larger of PyTorch's errors in
the two memory formats, or if a way works for PyTorch alone.
"""

from __future__ import annotations

import argparse
import copy
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles

import torch
from torch import nn

import bncore.torch
from bncore.programs.bench.tables import Table
from steps import put
from torch_ways import WAYS, Unlike

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from torch_vision import timm, torchvision

PAGE = Path(__file__).resolve().parents[1] / "docs" / "torch-models.md"
TORCHVISION = (
    *("resnet18", "resnet50", "resnext50_32x4d", "vgg11_bn", "densenet121", "googlenet"),
    *("resnet34", "mobilenet_v2", "mobilenet_v3_small", "mnasnet0_5", "shufflenet_v2_x0_5"),
    *("efficientnet_b0", "efficientnet_v2_s", "regnet_x_400mf", "regnet_y_400mf"),
)
TIMM = (
    *("resnet18", "resnet26d", "selecsls42", "res2net50_26w_4s", "seresnet50", "skresnet18"),
    *("cspdarknet53", "dla34", "efficientnet_lite0", "ghostnet_100", "hrnet_w18_small"),
    *("mobilenetv3_small_100", "regnety_002", "repvgg_a0", "tf_efficientnetv2_b0"),
)
NAMES = [f"torchvision {name}" for name in TORCHVISION] + [f"timm {name}" for name in TIMM]
WAYS_NAMES = [
    "torchvision resnet18", "torchvision mobilenet_v2", "torchvision shufflenet_v2_x0_5",
    "torchvision regnet_x_400mf", "torchvision mnasnet0_5", "torchvision vgg11_bn",
    "timm resnet18", "timm mobilenetv3_small_100", "timm regnety_002", "timm efficientnet_lite0",
]  # fmt: skip
QUICK = ["timm test_resnet", "timm test_efficientnet"]
BATCHES = 8
FACTOR = 2.0  # an error of bncore may be so many times that of PyTorch: both are noise
FORMATS = {"NCHW": torch.contiguous_format, "channels last": torch.channels_last}


def made(name: str) -> nn.Module:
    """Make a model; the same weights for the same name."""
    library, kind = name.split()
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what the weights are initialized with
        if library == "timm":
            model = timm.create_model(kind, num_classes=10)
        else:
            model = torchvision.models.get_model(kind, weights=None, num_classes=10)
    for module in model.modules():  # the gradient of what is dropped depends on the generator alone
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    return model


def images(size: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(seed))


def first(result: object) -> torch.Tensor:
    """Return the output itself of models that give others besides."""
    return result if isinstance(result, torch.Tensor) else result[0]  # type: ignore[index]


def computed(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Return the output and the gradients of all parameters."""
    torch.manual_seed(2)  # of dropout
    y = first(model(x))
    parameters = list(model.parameters())
    wanted = torch.autograd.grad(y.square().mean(), parameters, allow_unused=True)
    return [y.detach(), *(one for one in wanted if one is not None)]


def errors(got: list[torch.Tensor], exact: list[torch.Tensor]) -> tuple[float, float]:
    """Return the differences of the output and of the gradients, relative to the largest value."""
    found = []
    for part in (slice(0, 1), slice(1, None)):
        largest = max(float(one.abs().max()) for one in exact[part])
        pairs = zip(got[part], exact[part], strict=True)
        found.append(max(float((a.double() - b).abs().max()) for a, b in pairs) / largest)
    return found[0], found[1]


@dataclass
class Numbers:
    """The errors of an architecture: by mode and format, of PyTorch and of bncore."""

    name: str
    layers: int
    left: list[str]
    found: dict[tuple[str, str], tuple[tuple[float, float], tuple[float, float]]] = field(
        default_factory=dict
    )

    @property
    def worst(self) -> float:
        """The largest error of bncore, in errors of PyTorch of the same kind and mode."""
        found = []
        for mode in ("training", "evaluation"):
            pairs = [pair for (other, _), pair in self.found.items() if other == mode]
            for kind in (0, 1):
                noise = max(theirs[kind] for theirs, _ in pairs)
                found += [own[kind] / max(noise, 1e-7) for _, own in pairs]
        return max(found)


def numbers(name: str, size: int) -> Numbers:
    """Compare an architecture with float64, in every mode and format."""
    plain = made(name)
    own = bncore.torch.convert(copy.deepcopy(plain))
    report = bncore.torch.report(own)
    result = Numbers(
        name,
        len(report.converted),
        [f"{one.name} ({one.kind})" for one in report.left if "Batch" in one.kind],
    )
    exact_model = copy.deepcopy(plain).double()
    state = copy.deepcopy(plain.state_dict())
    for training in (True, False):
        found: dict[str, list[list[tuple[float, float]]]] = {order: [] for order in FORMATS}
        for seed in range(BATCHES):
            x = images(size, seed)
            exact = computed_from(state, exact_model.train(training), x.double())
            for order, memory_format in FORMATS.items():
                batch = x.to(memory_format=memory_format)
                pair = [
                    computed_from(
                        state, model.train(training).to(memory_format=memory_format), batch
                    )
                    for model in (plain, own)
                ]
                found[order].append([errors(got, exact) for got in pair])
        for order, batches in found.items():
            theirs, ours = (
                (max(b[i][0] for b in batches), quantiles((b[i][1] for b in batches), n=4)[0])
                for i in (0, 1)
            )
            result.found["training" if training else "evaluation", order] = theirs, ours
    return result


def computed_from(
    state: dict[str, torch.Tensor], model: nn.Module, x: torch.Tensor
) -> list[torch.Tensor]:
    """Return the output and the gradients of a model with this state."""
    model.load_state_dict(state)
    return computed(model, x)


def numbers_table(found: list[Numbers]) -> Table:
    columns = [f"{mode}, {order}" for mode in ("training", "evaluation") for order in FORMATS]
    head = ["model", "batch norms", "left", *columns, "largest ratio"]
    table = Table("numbers", head)
    for one in found:
        cells = [
            f"{own[0]:.0e} / {theirs[0]:.0e}, {own[1]:.0e} / {theirs[1]:.0e}"
            for theirs, own in one.found.values()
        ]
        left = ", ".join(one.left) or "0"
        table.lines.append([one.name, str(one.layers), left, *cells, f"{one.worst:.1f}"])
    return table


def tried(way: str, model: nn.Module, x: torch.Tensor) -> str:
    """Do something to a model; return "yes", or what went wrong."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of deprecations in PyTorch
            WAYS[way](model, x)
    except Unlike as difference:
        return f"other results ({difference})"
    except Exception as error:  # of any tool
        return type(error).__name__
    return "yes"


def ways(name: str, size: int) -> dict[str, tuple[str, str]]:
    """Go all ways with a model of PyTorch and with the converted one."""
    x = images(size)
    found = {}
    for way in WAYS:
        plain = made(name)
        own = bncore.torch.convert(made(name))
        found[way] = (tried(way, plain, x), tried(way, own, x))
        print(f"  {name}: {way}: PyTorch {found[way][0]}, bncore {found[way][1]}", flush=True)
    return found


def cell(pair: tuple[str, str]) -> str:
    theirs, own = pair
    if own == "yes":
        return "yes" if theirs == "yes" else f"yes (PyTorch: {theirs})"
    return f"as PyTorch: {own}" if theirs == own else f"**{own}** (PyTorch: {theirs})"


def ways_table(found: dict[str, dict[str, tuple[str, str]]]) -> Table:
    table = Table("ways", ["", *found])
    for way in WAYS:
        table.lines.append([way, *(cell(pairs[way]) for pairs in found.values())])
    return table


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--part", choices=("numbers", "ways", "both"), default="both")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--models", type=lambda given: given.split(","), help="these alone")
    options = parser.parse_args()
    chosen = options.models or (QUICK if options.quick else None)
    torch.set_num_threads(1)
    wrong = []
    if options.part != "ways":
        rows = []
        for name in chosen or NAMES:
            rows.append(numbers(name, options.size))
            print(f"{name}: {rows[-1].layers} layers, ratio {rows[-1].worst:.2f}", flush=True)
            if rows[-1].left or rows[-1].worst > FACTOR:
                wrong.append(name)
        print(numbers_table(rows).markdown())
        if options.write:
            put(PAGE, "numbers", numbers_table(rows).markdown())
    if options.part != "numbers":
        found = {name: ways(name, options.size) for name in chosen or WAYS_NAMES}
        for name, pairs in found.items():
            wrong += [f"{name}: {way}" for way, pair in pairs.items() if "**" in cell(pair)]
        print(ways_table(found).markdown())
        if options.write:
            put(PAGE, "ways", ways_table(found).markdown())
    for one in wrong:
        print(f"worse than PyTorch: {one}", file=sys.stderr)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
