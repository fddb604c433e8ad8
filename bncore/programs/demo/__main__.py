"""Run the demo: the table of errors and times, then the two networks."""

from __future__ import annotations

import argparse
import sys

from bncore.extras import pip_install

try:
    import rich  # noqa: F401
    import sklearn  # noqa: F401
except ImportError as error:
    sys.exit(
        f"The demo needs scikit-learn and rich ({error}): {pip_install('demo')} installs them, "
        "and `make demo` in a checkout does all of it"
    )

from dataclasses import asdict

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

import bncore
from bncore.programs import terminal
from bncore.programs.demo import network, table
from bncore.programs.demo.data import split_digits
from bncore.programs.terminal import Show

HIDDEN, BATCH, RATE = 128, 64, 0.1
Epochs = list[network.Epoch]


def train_both(epochs: int, show: Show) -> tuple[Epochs, Epochs]:
    """Train the same network without and with batch norm; return the epochs of each."""
    digits = split_digits()
    trained: tuple[Epochs, Epochs] = ([], [])
    for batch_norm, into in zip((False, True), trained, strict=True):
        made = network.Network(HIDDEN, batch_norm)
        what = f"training {'with' if batch_norm else 'without'} batch norm"
        for epoch in network.train(made, digits, epochs=epochs, batch=BATCH, rate=RATE):
            into.append(epoch)
            show(2 * epochs, len(trained[0]) + len(trained[1]), what)
    return trained


def print_training(console: Console, without: Epochs, with_norm: Epochs) -> None:
    """Print both trainings, epoch by epoch side by side."""
    digits = split_digits()
    console.print(
        f"A network 64 -> {HIDDEN} -> 10 on {len(digits.train_x):,} digits, tested on "
        f"{len(digits.test_x)} others. Same seed, same weights at the start, same batches of "
        f"{BATCH}, same learning rate {RATE}; evaluated with running statistics.\n"
    )
    side_by_side = Table(
        title="Training with and without batch normalization", box=SIMPLE_HEAD, show_edge=False
    )
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
    parser = argparse.ArgumentParser(
        prog="python -m bncore demo",
        description="Normalize images of handwritten digits, and show errors and times beside the "
        "usual NumPy formula. Then train a small network without and with batch norm.",
    )
    parser.add_argument("--quick", action="store_true", help="fewer images, repeats and epochs")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    options = parser.parse_args(arguments)
    repeats, limit, epochs = (3, 100, 2) if options.quick else (31, None, 12)
    with terminal.progress_bar() as show:
        rows, shape = table.measure_all(repeats=repeats, limit=limit, show=show)
        without, with_norm = train_both(epochs, show)
    if options.json:
        found = {
            "config": bncore.show_config(mode="dicts"),
            "shape": shape,
            "rows": [asdict(row) for row in rows],
            "without batch norm": [asdict(epoch) for epoch in without],
            "with batch norm": [asdict(epoch) for epoch in with_norm],
        }
        print(terminal.json_text(found))
        return
    bncore.show_config()
    console = terminal.console()
    table.print_table(console, rows, shape, repeats)
    print_training(console, without, with_norm)


if __name__ == "__main__":
    main()
