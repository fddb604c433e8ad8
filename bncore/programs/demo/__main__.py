"""Run the demo: the table of errors and times, then the two networks."""

from __future__ import annotations

import argparse
import sys

try:
    import rich  # noqa: F401
    import sklearn  # noqa: F401
except ImportError as error:
    sys.exit(
        f"The demo needs scikit-learn and rich ({error}): "
        "in bncore's checkout, pip install '.[demo]', or make demo"
    )

from rich.console import Console
from rich.table import Table

import bncore
from bncore.programs.demo import network, table
from bncore.programs.demo.data import split_digits

HIDDEN, BATCH, RATE = 128, 64, 0.1


def train_both(console: Console, epochs: int) -> None:
    """Train the same network with and without batch norm, epoch by epoch side by side."""
    digits = split_digits()
    without, with_norm = (
        network.train(
            network.Network(HIDDEN, batch_norm), digits, epochs=epochs, batch=BATCH, rate=RATE
        )
        for batch_norm in (False, True)
    )
    console.print(
        f"\nA network 64 -> {HIDDEN} -> 10 on {len(digits.train_x):,} digits, tested on "
        f"{len(digits.test_x)} others.\nSame seed, same weights at the start, same batches of "
        f"{BATCH}, same learning rate {RATE};\nevaluated with running statistics."
    )
    side_by_side = Table(title="Training with and without batch normalization")
    for name in ("epoch", "loss", "test accuracy", "loss, batch norm", "test accuracy, batch norm"):
        side_by_side.add_column(name, justify="right")
    for number, (plain, normed) in enumerate(zip(without, with_norm, strict=True), start=1):
        side_by_side.add_row(
            str(number),
            f"{plain.loss:.4f}",
            f"{plain.accuracy:.1%}",
            f"{normed.loss:.4f}",
            f"{normed.accuracy:.1%}",
        )
    console.print(side_by_side)


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and run both parts."""
    parser = argparse.ArgumentParser(prog="python -m bncore demo", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer images, repeats and epochs")
    quick = parser.parse_args(arguments).quick
    console = Console(width=100)
    repeats = 3 if quick else 31
    bncore.show_config()
    rows, shape = table.measure_all(repeats=repeats, limit=100 if quick else None)
    table.print_table(console, rows, shape, repeats)
    train_both(console, epochs=2 if quick else 12)


if __name__ == "__main__":
    main()
