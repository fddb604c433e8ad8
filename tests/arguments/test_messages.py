"""Messages with a hint: what the caller probably meant, and where a size comes from."""

from __future__ import annotations

import io

import numpy as np
import pytest

import bncore

C = 3
X = np.ones((4, C, 5))

MESSAGES = [
    pytest.param(
        lambda: bncore.batch_norm_infer(X, bncore.moments(X), np.ones(C)),
        "mean: expected a real floating dtype, got Moments",
        id="moments-for-mean",
    ),
    pytest.param(
        lambda: bncore.batch_norm_infer(X, np.ones(C), bncore.moments(X).var),
        "var: expected a real floating dtype, got method (not called?)",
        id="forgotten-parentheses",
    ),
    pytest.param(
        lambda: bncore.moments({"x": 1}),
        "x: expected an array, got dict "
        "(it has arrays by name: pass one of them, such as x['name'])",
        id="dict-for-x",
    ),
    pytest.param(
        lambda: bncore.stream_moments("x.npy"),
        "x: expected an array, got 'x.npy' "
        "(open the file, and pass its array, such as numpy.load(path, mmap_mode='r'))",
        id="path-for-x",
    ),
    pytest.param(
        lambda: bncore.stream_moments(io.BytesIO()),
        "x: expected an array, got BytesIO "
        "(open the file, and pass its array, such as numpy.load(path, mmap_mode='r'))",
        id="file-for-x",
    ),
    pytest.param(
        lambda: bncore.stream_moments(x for x in [X]),
        "x: expected an array, got generator "
        "(bncore.merged_moments takes arrays one after the other)",
        id="generator-for-x",
    ),
    pytest.param(
        lambda: bncore.merged_moments({"x": X}),
        "pieces: expected an iterable of arrays, got dict",
        id="dict-for-pieces",
    ),
    pytest.param(
        lambda: bncore.merged_moments("x.npy"),
        "pieces: expected an iterable of arrays, got 'x.npy'",
        id="path-for-pieces",
    ),
    pytest.param(
        lambda: bncore.batch_norm_train(X.astype(np.int64)),
        "x: expected float16, bfloat16, float32 or float64, "
        "got int64 (convert with .astype(np.float32))",
        id="integer-x",
    ),
    pytest.param(
        lambda: bncore.batch_norm_train(X, [1, 2, 3]),
        "weight: expected a real floating dtype, "
        "got int64 (convert with np.asarray(..., np.float32))",
        id="integer-list",
    ),
    pytest.param(
        lambda: bncore.batch_norm_train(X.astype(complex)),
        "x: expected float16, bfloat16, float32 or float64, got complex128",
        id="complex-x",
    ),
    pytest.param(
        lambda: bncore.batch_norm_train(X, axis=-1, bias=np.ones(C)),
        "bias: expected shape (5,) (5 channels along axis -1), got (3,)",
        id="bias-of-another-axis",
    ),
]


@pytest.mark.parametrize(("call", "message"), MESSAGES)
def test_message(call, message):
    with pytest.raises((TypeError, ValueError)) as raised:
        call()
    assert str(raised.value) == message
