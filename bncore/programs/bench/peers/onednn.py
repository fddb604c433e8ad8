"""oneDNN, which PyTorch and TensorFlow use on Intel processors: float32, preallocated outputs.

It runs in the arrays' own layout, nchw or nhwc, or in its preferred layout of blocks of 16
channels.  Arrays are reordered to that layout before the clock starts, and back for the check.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from bncore.programs.bench.cases import EPS, LAYOUTS, Array, Case, Problem
from bncore.programs.bench.peers import Call
from bncore.programs.bench.peers import onednn_c as c


class OneDnn:
    """Forward in training and inference, and backward."""

    exact = False

    def __init__(self, name: str, blocked: bool) -> None:
        self.name = name
        self.blocked = blocked
        c.engine()

    def can(self, case: Case) -> bool:
        """Take the three main operations; the blocked layout only in place of channels first."""
        if self.blocked and (len(case.shape) not in c.BLOCKED_16C or case.layout != LAYOUTS[0]):
            return False
        main = case.operation in ("train", "infer", "train_backward")
        return main and case.output == "given" and case.dtype == "float32"

    @contextmanager
    def active(self, threads: int) -> Iterator[None]:
        """Set the threads of its OpenMP runtime, which is the system's libgomp."""
        gomp = ctypes.CDLL("libgomp.so.1")
        before = gomp.omp_get_max_threads()
        gomp.omp_set_num_threads(threads)
        try:
            yield
        finally:
            gomp.omp_set_num_threads(before)

    def call(self, case: Case, p: Problem) -> Call:
        """Describe the operation and bind its memory."""
        data, result = self.memory(p.x, p, copy=True), self.memory(p.out, p, copy=False)
        w, b = c.Memory.of(p.weight), c.Memory.of(p.bias)
        if case.operation == "infer":
            mean, var = c.Memory.of(p.running_mean), c.Memory.of(p.running_var)
            kind, stored = c.FORWARD_INFERENCE, c.USE_GLOBAL_STATS
        else:
            mean, var = (c.Memory.of(np.zeros_like(p.weight)) for _ in range(2))
            kind, stored = c.FORWARD_TRAINING, 0
        flags = c.USE_SCALE | c.USE_SHIFT
        with_statistics = {c.SRC: data, c.MEAN: mean, c.VARIANCE: var, c.SCALE: w}
        forward = c.Primitive(
            c.forward_description(kind, data, EPS, flags | stored),
            {**with_statistics, c.SHIFT: b, c.DST: result},
        )
        run: Call = forward
        outputs = [result]
        if case.operation == "train_backward":
            forward()  # it reads what training saved
            outputs += [c.Memory.of(np.zeros_like(p.weight)) for _ in range(2)]
            gradients = dict(zip((c.DIFF_SRC, c.DIFF_SCALE, c.DIFF_SHIFT), outputs, strict=True))
            dy = self.memory(p.dy, p, copy=True)
            run = c.Primitive(
                c.backward_description(data, EPS, flags),
                {**with_statistics, c.DIFF_DST: dy, **gradients},
            )

        def call() -> list[c.Memory]:
            run()
            return outputs

        return call

    def memory(self, array: Array, p: Problem, *, copy: bool) -> c.Memory:
        """Wrap an array of x's shape, or copy it into the blocked layout."""
        plain = c.Memory.of(np.moveaxis(array, p.axis, 1))
        if not self.blocked:
            return plain
        blocked = c.Memory.blocked(p.shape)
        if copy:
            plain.copy_to(blocked)
        return blocked

    def arrays(self, case: Case, result: Any, p: Problem) -> tuple[Array, ...]:
        """Reorder the large result back into plain memory."""
        if self.blocked:
            result[0].copy_to(c.Memory.of(np.moveaxis(p.out, p.axis, 1)))
        return (p.out, *(memory.array for memory in result[1:]))


def peer(name: str, blocked: bool) -> OneDnn:
    """Make the peer; OSError where the library does not load."""
    return OneDnn(name, blocked)
