"""Types of the compiled module, a backend with a fast path; contract.py describes both."""

from typing import Any

from bncore.backends.contract import Backend, FastPath
from bncore.backends.group_contract import GroupBackend
from bncore.backends.integer_contract import IntegerBackend

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
def share(one: object) -> None: ...

_backend: Backend
moments = _backend.moments
normalize = _backend.normalize
train = _backend.train
grad_sums = _backend.grad_sums
grad_input = _backend.grad_input
train_backward = _backend.train_backward
infer_backward = _backend.infer_backward

_group_backend: GroupBackend
group_norm = _group_backend.group_norm
group_norm_backward = _group_backend.group_norm_backward

_integer_backend: IntegerBackend
integer_moments = _integer_backend.integer_moments
integer_normalize = _integer_backend.integer_normalize

_fast_path: FastPath
in_float32 = _fast_path.in_float32
store_float32 = _fast_path.store_float32
fast_train = _fast_path.fast_train
fast_train_backward = _fast_path.fast_train_backward
fast_infer = _fast_path.fast_infer
fast_infer_backward = _fast_path.fast_infer_backward
fast_moments = _fast_path.fast_moments
fast_normalize = _fast_path.fast_normalize
fast_grad_sums = _fast_path.fast_grad_sums
fast_grad_input = _fast_path.fast_grad_input
fast_mean_var = _fast_path.fast_mean_var
fast_running = _fast_path.fast_running
