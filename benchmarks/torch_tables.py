"""The tables of torch_model.py: times of steps, of groups of operations, memory and errors."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bncore.programs.bench.tables import Table, counted
from torch_networks import KINDS
from torch_worker import GROUPS

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = DOCS / "pytorch.md"
DATA = DOCS / "data" / "torch_model.csv"
NAMES = {
    "resnet50": "ResNet-50",
    "mobilenet_v2": "MobileNetV2",
    "resnet50_leaky": "ResNet-50 with leaky ReLU",
}

Row = dict[str, Any]
Quantities = dict[str, dict[str, float]]  # medians by contestant and quantity


def setting(row: Row) -> str:
    """Say how the steps of a row were run, as briefly as possible."""
    parts = [NAMES[row["network"]], row["dtype"], row["layout"], counted(int(row["threads"]))]
    if row["mode"] == "compiled":
        parts.append("`torch.compile`")
    if row["isa"]:
        parts.append(f"bncore with {row['isa']}")
    return ", ".join(parts)


def grouped(rows: Iterable[Row]) -> dict[str, Quantities]:
    """Return the medians by setting, contestant and quantity."""
    found: dict[str, Quantities] = {}
    for row in rows:
        kinds = found.setdefault(setting(row), {})
        kinds.setdefault(row["kind"], {})[row["quantity"]] = float(row["median"])
    return found


def tables(rows: list[Row]) -> list[Table]:
    """Make the tables of the page."""
    found = grouped(rows)
    made = [steps_table(found), operations_table(found), needs_table(found)]
    return [table for table in made if table.lines]


def steps_table(found: dict[str, Quantities]) -> Table:
    """Milliseconds of a step, and how many times a contestant's time PyTorch's takes.

    The last columns say the same of the processor's time, which other programs disturb less.
    """
    others = [kind for kind in KINDS if kind != "torch"]
    head = ["training step, ms", *KINDS.values()]
    table = Table("steps", [*head, *(f"processor's time, {KINDS[kind]}" for kind in others)])
    for name, kinds in found.items():
        cells = []
        for kind in KINDS:
            step = kinds.get(kind, {}).get("step")
            ratio = f" ({times(kinds, kind, 'step')})" if step and kind != "torch" else ""
            cells.append(f"{step * 1e3:.0f}{ratio}" if step else "")
        cells += [times(kinds, kind, "processor") for kind in others]
        table.lines.append([name, *cells])
    return table


def times(kinds: Quantities, kind: str, quantity: str) -> str:
    """Say how many times a contestant's time PyTorch's takes; nothing if one is missing."""
    own, other = (kinds.get(one, {}).get(quantity) for one in (kind, "torch"))
    return f"{other / own:.2f}×" if own and other else ""


def operations_table(found: dict[str, Quantities]) -> Table:
    """Milliseconds of the groups of operations of a step."""
    groups = [*GROUPS, "rest"]
    table = Table("operations, ms", ["in a step, ms", "", *groups])
    for name, kinds in found.items():
        first = name
        for kind, values in kinds.items():
            if "rest" not in values:
                continue
            cells = [f"{values[group] * 1e3:.0f}" for group in groups]
            table.lines.append([first, KINDS[kind], *cells])
            first = ""
    return table


def needs_table(found: dict[str, Quantities]) -> Table:
    """Peak memory, and the largest errors relative to the largest value."""
    head = ["", "", "peak memory of the steps", "error, output", "error, gradients"]
    table = Table("memory and errors", head)
    for name, kinds in found.items():
        first = name
        for kind, values in kinds.items():
            if "MiB" not in values:
                continue
            errors = [f"{values[f'{part} error']:.1e}" for part in ("output", "gradient")]
            table.lines.append([first, KINDS[kind], f"{values['MiB']:.0f} MiB", *errors])
            first = ""
    return table


def executors_table(rows: list[Row]) -> Table:
    """Steps of the same network with each executor."""
    table = Table("executors", ["", "executor", "step, ms", "upper quartile, ms", "of PyTorch's"])
    steps = [row for row in rows if row["quantity"] == "step"]
    for row in steps:
        cells = [f"{row[name] * 1e3:.0f}" for name in ("median", "high")]
        ratio = f"{row['median'] / steps[0]['median']:.2f}"
        table.lines.append([KINDS[row["kind"]], row["executor"], *cells, ratio])
    return table
