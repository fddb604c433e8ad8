"""The peers that are measured: bncore's backends, and other libraries that are installed.

For a `Case` and its `Problem` a peer makes a function without arguments that does the operation and
returns the result.  Only that call is timed; arrays, descriptors, compiled code and preallocated
outputs are made before.  A module here is imported when its peer is needed.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple, Protocol, cast

from bncore.programs.bench.cases import Array, Case, Problem

Call = Callable[[], Any]


class Unavailable(Exception):
    """A peer that cannot run here, or not this case; the message says why."""


class Peer(Protocol):
    """The interface of a peer; if `exact` is true, it must have bncore's promised accuracy."""

    name: str
    exact: bool

    def can(self, case: Case) -> bool:
        """Whether the peer has this operation, layout, dtype and kind of output."""

    def active(self, threads: int) -> AbstractContextManager[None]:
        """Everything that must hold while its calls run."""

    def call(self, case: Case, p: Problem) -> Call:
        """Make the function that is timed."""

    def arrays(self, case: Case, result: Any, p: Problem) -> tuple[Array, ...]:
        """Results as NumPy arrays in the problem's memory order."""


class Entry(NamedTuple):
    """How to load a peer: its module here, the arguments of `peer()`, the packages it needs.

    The variables of its environment are set before its process starts.
    """

    name: str
    module: str
    arguments: tuple[Any, ...] = ()
    packages: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()


# The C library keeps memory that is given back, and takes large arrays from it, too.
KEPT_MEMORY = (("MALLOC_MMAP_MAX_", "0"), ("MALLOC_TRIM_THRESHOLD_", str(2**40)))

# bncore first: the others are compared with it.
PEERS: dict[str, Entry] = {
    "native": Entry("bncore", "own", ("native",)),
    "numba": Entry("bncore, Numba", "own", ("numba",), ("numba",)),
    "twin": Entry("bncore, NumPy", "own", ("numpy",)),
    "numpy": Entry("NumPy formula", "numpy_formula", (), ("numpy",)),
    "torch": Entry("PyTorch", "pytorch", (), ("torch",)),
    "compile": Entry("torch.compile", "pytorch_compiled", (), ("torch",)),
    "onednn": Entry("oneDNN", "onednn", (False,), ("onednn-cpu-gomp",)),
    "onednn16c": Entry("oneDNN nChw16c", "onednn", (True,), ("onednn-cpu-gomp",)),
    "onnxruntime": Entry("ONNX Runtime", "onnx_runtime", (), ("onnxruntime", "onnx")),
    "jax": Entry("JAX", "jax_jit", (), ("jax", "jaxlib")),
    # What bncore's fusion and its buffer pool are measured against.
    "alone": Entry("bncore, batch norm alone", "own", ("native", "alone")),
    "given": Entry("bncore, output given", "own", ("native", "given")),
    # The same values in float32, which 16-bit data are compared with.
    "wide": Entry("bncore, float32", "own", ("native", "wide")),
    # The oneDNN that PyTorch's wheel contains, which is newer than the package of its own.
    "torch_onednn": Entry("oneDNN of PyTorch", "onednn_wheel", (), ("torch",), KEPT_MEMORY),
    # Another release than the one beside bncore, under the interpreter that --other-torch names.
    "torch_other": Entry("PyTorch, other", "pytorch"),
    # Both sides as on a processor that has AVX2 alone.
    "avx2": Entry("bncore, AVX2", "own", ("native",), (), (("BNCORE_ISA", "avx2"),)),
    "torch_avx2": Entry(
        "PyTorch, AVX2", "pytorch", (), ("torch",), (("ATEN_CPU_CAPABILITY", "avx2"),)
    ),
}
OWN = "native"
# These are measured where they are asked for.  The NumPy backend is a readable version, about ten
# times slower than the others.
OTHER_PYTHON = "torch_other"
ASKED_FOR = ("twin", OTHER_PYTHON, "avx2", "torch_avx2")
OTHERS = tuple(key for key in PEERS if key not in (OWN, *ASKED_FOR))
# These need no process that is started in a special way.
IN_PROCESS = tuple(k for k, entry in PEERS.items() if not entry.environment and k != OTHER_PYTHON)


def installed(key: str) -> dict[str, str]:
    """Return the versions of the packages that a peer needs.

    Raises
    ------
    Unavailable
        If one is not installed.
    """
    try:
        return {package: version(package) for package in PEERS[key].packages}
    except PackageNotFoundError as error:
        raise Unavailable(f"{error.name} is not installed") from None


def load(key: str) -> Peer:
    """Import a peer.

    Raises
    ------
    Unavailable
        If it cannot run here.
    """
    installed(key)
    entry = PEERS[key]
    try:
        module = importlib.import_module(f"bncore.programs.bench.peers.{entry.module}")
        return cast(Peer, module.peer(entry.name, *entry.arguments))
    except (ImportError, OSError) as error:
        raise Unavailable(str(error)) from error
