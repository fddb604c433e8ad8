"""The NumPy backend: the functions of the contract, with the same bits as the specification."""

from bncore.backends.numpy.groups import group_norm, group_norm_backward
from bncore.backends.numpy.reference import (
    grad_input,
    grad_sums,
    infer_backward,
    integer_moments,
    integer_normalize,
    moments,
    normalize,
    train,
    train_backward,
)

__all__ = [
    "grad_input",
    "grad_sums",
    "group_norm",
    "group_norm_backward",
    "infer_backward",
    "integer_moments",
    "integer_normalize",
    "moments",
    "name",
    "normalize",
    "train",
    "train_backward",
]

name = "numpy"
