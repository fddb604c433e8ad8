"""Types of the compiled module; see contract.py, binding.pyx and fast_*.pxi."""

from typing import Any, SupportsIndex

from bncore.backends.contract import Data, Fusion, Stat

name: str

def capsules() -> dict[str, Any]: ...
def address(capsule: Any) -> int: ...
def statuses() -> dict[str, tuple[int, str]]: ...
def isa() -> str: ...
def available_isas() -> tuple[str, ...]: ...
def set_isa(isa_name: str) -> None: ...
def executor() -> str: ...
def available_executors() -> tuple[str, ...]: ...
def set_executor(executor_name: str) -> None: ...
def workers() -> int: ...
def max_threads() -> int: ...
def set_max_threads(threads: int) -> None: ...
def has_openmp() -> bool: ...
def omp_max_threads() -> int: ...
def in_forked_child() -> bool: ...
def moments(mean: Stat, m2: Stat, x: Data, n_threads: int) -> None: ...
def normalize(
    y: Data,
    x: Data,
    mean: Stat,
    var: Stat,
    weight: Stat | None,
    bias: Stat | None,
    eps: float,
    n_threads: int,
    fusion: Fusion | None = None,
) -> None: ...
def train(
    y: Data,
    mean: Stat,
    m2: Stat,
    x: Data,
    weight: Stat | None,
    bias: Stat | None,
    eps: float,
    n_threads: int,
    fusion: Fusion | None = None,
) -> None: ...
def grad_sums(
    sum_dy: Stat,
    sum_dy_xhat: Stat,
    dy: Data,
    x: Data,
    mean: Stat,
    var: Stat,
    eps: float,
    n_threads: int,
) -> None: ...
def grad_input(
    dx: Data,
    dy: Data,
    x: Data,
    mean: Stat,
    var: Stat,
    sum_dy: Stat,
    sum_dy_xhat: Stat,
    count: float,
    weight: Stat | None,
    eps: float,
    n_threads: int,
) -> None: ...
def train_backward(
    dx: Data,
    sum_dy: Stat,
    sum_dy_xhat: Stat,
    dy: Data,
    x: Data,
    mean: Stat,
    var: Stat,
    weight: Stat | None,
    eps: float,
    n_threads: int,
    fusion: Fusion | None = None,
) -> None: ...
def infer_backward(
    dx: Data,
    sum_dy: Stat,
    sum_dy_xhat: Stat,
    dy: Data,
    x: Data,
    mean: Stat,
    var: Stat,
    weight: Stat | None,
    eps: float,
    n_threads: int,
    fusion: Fusion | None = None,
) -> None: ...
def fast_train(
    x: Any,
    weight: Any,
    bias: Any,
    axis: SupportsIndex,
    eps: Any,
    out: Any,
    n_threads: int,
    activation: Any = None,
    slope: Any = 0.0,
    residual: Any = None,
) -> tuple[Data, int, Stat, Stat] | None: ...
def fast_infer(
    x: Any,
    mean: Any,
    var: Any,
    weight: Any,
    bias: Any,
    axis: SupportsIndex,
    eps: Any,
    out: Any,
    n_threads: int,
    activation: Any = None,
    slope: Any = 0.0,
    residual: Any = None,
) -> Data | None: ...
def fast_running(
    running_mean: Any,
    running_var: Any,
    count: int,
    mean: Stat,
    m2: Stat,
    momentum: Any,
    correction: Any,
) -> bool | None: ...
def fast_train_backward(
    dy: Any,
    x: Any,
    count: int,
    mean: Any,
    m2: Any,
    weight: Any,
    axis: SupportsIndex,
    eps: Any,
    out: Any,
    n_threads: int,
    bias: Any = None,
    activation: Any = None,
    slope: Any = 0.0,
    residual: Any = None,
    dresidual: Any = None,
) -> tuple[Data, Data, Data] | None: ...
def fast_infer_backward(
    dy: Any,
    x: Any,
    mean: Any,
    var: Any,
    weight: Any,
    axis: SupportsIndex,
    eps: Any,
    out: Any,
    n_threads: int,
    bias: Any = None,
    activation: Any = None,
    slope: Any = 0.0,
    residual: Any = None,
    dresidual: Any = None,
) -> tuple[Data, Data, Data] | None: ...
def fast_moments(x: Any, axis: SupportsIndex, n_threads: int) -> tuple[int, Stat, Stat] | None: ...
def fast_normalize(
    x: Any,
    count: int,
    mean: Any,
    m2: Any,
    weight: Any,
    bias: Any,
    axis: SupportsIndex,
    eps: Any,
    out: Any,
    n_threads: int,
) -> Data | None: ...
def fast_grad_sums(
    dy: Any,
    x: Any,
    count: int,
    mean: Any,
    m2: Any,
    axis: SupportsIndex,
    eps: Any,
    n_threads: int,
) -> tuple[Stat, Stat] | None: ...
def fast_grad_input(
    dy: Any,
    x: Any,
    count: int,
    mean: Any,
    m2: Any,
    sum_dy: Any,
    sum_dy_xhat: Any,
    weight: Any,
    axis: SupportsIndex,
    eps: Any,
    out: Any,
    n_threads: int,
) -> Data | None: ...
def fast_mean_var(
    x_: Any, axis: Any, correction_: Any, keepdims: Any, n_threads: int
) -> tuple[Any, Any] | None: ...
