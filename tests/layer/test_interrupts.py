"""A call that is interrupted leaves the layer as it was, or as the whole call leaves it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import bncore
import interrupts

C = 3
X = np.random.default_rng(1).standard_normal((4, C, 5))
DY = np.random.default_rng(2).standard_normal((4, C, 5))
LAYER = (
    "layer/calls.py",
    "layer/state.py",
    "layer/rollback.py",
    "layer/settings.py",
    "functions/running_stats.py",
)
DATA = ("data/micro_batches.py", "data/recalibrate.py", *LAYER)


def require_all_or_nothing(start, call, *modules):
    """After every interrupt, compare the layer with its state before and after the whole call."""
    untouched, finished = start(), start()
    call(finished)
    before, after = interrupts.contents(untouched), interrupts.contents(finished)
    assert before != after, "the call changes nothing"
    seen = set()
    for number, made in enumerate(interrupts.every_interrupt(start, call, *modules)):
        now = interrupts.contents(made)
        assert now in (before, after), number
        seen.add("before" if now == before else "after")
    assert "before" in seen


def layer(channels: int | None = C, **settings: Any) -> bncore.BatchNorm:
    return bncore.BatchNorm(channels, dtype=None if channels is None else np.float64, **settings)


def trained(**settings: Any) -> bncore.BatchNorm:
    made = layer(**settings)
    made(X)
    return made


STATE = trained().state_dict()

CASES = {
    "forward": (trained, lambda made: made(DY)),
    "forward-of-a-new-layer": (lambda: bncore.BatchNorm(), lambda made: made(X)),
    "forward-of-a-layer-without-dtype": (lambda: bncore.BatchNorm(C), lambda made: made(X)),
    "forward-cumulative": (lambda: trained(momentum=None), lambda made: made(DY)),
    "forward-debiased": (lambda: trained(debias=True), lambda made: made(DY)),
    "forward-finite": (
        lambda: trained(on_nonfinite="raise"),
        lambda made: made(DY, out=np.empty_like(X)),
    ),
    "forward-frozen": (lambda: trained().freeze(), lambda made: made(DY)),
    "forward-in-evaluation": (lambda: trained().eval(), lambda made: made(DY)),
    "backward": (trained, lambda made: made.backward(DY)),
    "load_state_dict": (layer, lambda made: made.load_state_dict(STATE)),
    "load_state_dict-of-a-new-layer": (
        lambda: bncore.BatchNorm(),
        lambda made: made.load_state_dict(STATE),
    ),
    "reset": (trained, lambda made: made.reset()),
    "reset_running_stats": (trained, lambda made: made.reset_running_stats()),
}


@pytest.mark.parametrize("case", CASES)
def test_a_layer(case):
    require_all_or_nothing(*CASES[case], *LAYER)


def pieces_added() -> bncore.MicroBatches:
    batch = bncore.MicroBatches(np.ones(C))
    batch.add(X)
    return batch


def gradients_added() -> bncore.MicroBatches:
    batch = pieces_added()
    batch.add(DY)
    batch.add_gradient(DY, X)
    return batch


PIECES = {
    "add-first": (bncore.MicroBatches, lambda batch: batch.add(X)),
    "add": (pieces_added, lambda batch: batch.add(DY)),
    "normalize": (pieces_added, lambda batch: batch.normalize(X)),
    "add_gradient-first": (pieces_added, lambda batch: batch.add_gradient(DY, X)),
    "add_gradient": (gradients_added, lambda batch: batch.add_gradient(DY, X)),
    "forward": (bncore.MicroBatches, lambda batch: batch.forward([X, DY])),
    "backward": (pieces_added, lambda batch: batch.backward([DY], [X])),
}


@pytest.mark.parametrize("case", PIECES)
def test_micro_batches(case):
    require_all_or_nothing(*PIECES[case], *DATA)


@pytest.mark.parametrize(("sequential", "known"), [(False, True), (True, False)])
def test_recalibration(sequential, known):
    class Network(list):
        def forward(self, x):
            for one in self:
                x = one(x)

    def start() -> Network:
        return Network([trained().eval(), layer() if known else bncore.BatchNorm()])

    def call(network: Network) -> None:
        bncore.recalibrate(network, [X, DY], sequential=sequential)

    require_all_or_nothing(start, call, *DATA)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, ">f8"], ids=str)
def test_update_running_stats(backend, dtype):
    moments = bncore.moments(X)

    def start() -> tuple[np.ndarray, np.ndarray]:
        return np.zeros(C, dtype), np.ones(C, dtype)

    require_all_or_nothing(
        start, lambda pair: bncore.update_running_stats(*pair, moments), LAYER[-1]
    )
