# The fast path of batch_norm_*. binding.pyx includes this file. A separate module would need a second copy of the C
# core, and the chosen kernels are state of the C core.
#
# Each function (fast_*, here and in fast_steps.pxi) takes a caller's own arguments. It returns None unless all of them
# are canonical, as fast_arguments.pxi defines it.

cimport numpy as cnp

ctypedef bncore_status (*kernel)(const Call *c) noexcept nogil


cdef bncore_status _train(const Call *c) noexcept nogil:
    return bncore_train(&c.problem, c.to, c.results[0], c.results[1], c.x, c.given[WEIGHT], c.given[BIAS])


cdef bncore_status _normalize(const Call *c) noexcept nogil:
    return bncore_normalize(&c.problem, c.to, c.x, c.given[MEAN], c.given[VAR], c.given[WEIGHT], c.given[BIAS])


cdef bncore_status _train_backward(const Call *c) noexcept nogil:
    return bncore_train_backward(&c.problem, c.to, c.results[0], c.results[1], c.dy, c.x, c.given[MEAN], c.given[VAR],
                                 c.given[WEIGHT])


cdef bncore_status _infer_backward(const Call *c) noexcept nogil:
    return bncore_infer_backward(&c.problem, c.to, c.results[0], c.results[1], c.dy, c.x, c.given[MEAN], c.given[VAR],
                                 c.given[WEIGHT])


cdef int _run(Call *call, kernel run) except -1:
    """Run the kernel. Release the GIL if there is enough work to make that worthwhile."""
    cdef bncore_status status
    if _count(call) * call.problem.channels <= FEW_VALUES:
        status = run(call)
    else:
        with nogil:
            status = run(call)
    _check(status)
    return 0


cdef bint _fused_backward(Call *call, cnp.ndarray x, object dy, object weight, object bias, object out,
                          object activation, object slope, object residual, object dresidual) noexcept:
    """Read the arguments of both backward functions except the statistics; return False if one is not canonical."""
    if not _gradient(call, dy, x) or not _output_fits(out, x, dy) or not _parameter(call, WEIGHT, weight, out):
        return False
    if not _parameter(call, BIAS, bias, out) or not _fusion(call, activation, slope, residual, x, out):
        return False
    call.fusion.bias = call.given[BIAS]
    return (_residual_gradient(call, dresidual, x, dy, residual, out) and _apart_or_none(dresidual, weight)
            and _apart_or_none(dresidual, bias))


cdef tuple _backward(Call *call, kernel run, cnp.ndarray x, object weight, object out):
    """Run a backward function; return (dx, dweight, dbias)."""
    cdef cnp.ndarray dx = _output(call, out, x)
    cdef cnp.ndarray sum_dy = _per_channel(call, 0), sum_dy_xhat = _per_channel(call, 1)
    _run(call, run)
    cdef int dtype
    if weight is not None:
        dtype = _dtype(<cnp.ndarray>weight)
    else:
        dtype = BNCORE_FLOAT64 if call.problem.dtype == BNCORE_FLOAT64 else BNCORE_FLOAT32
    return dx, _rounded(sum_dy_xhat, dtype), _rounded(sum_dy, dtype)


def fast_train(x, weight, bias, axis, eps, out, int n_threads, activation=None, slope=0.0, residual=None):
    """Compute batch_norm_train; return (y, count, mean, m2), or None if an argument is not canonical."""
    cdef Call call
    cdef cnp.ndarray y, mean, m2
    if not _open(&call, x, axis, eps, n_threads):
        return None
    try:
        if (_count(&call) < 2 or not _output_fits(out, <cnp.ndarray>x, None)
                or not _parameter(&call, WEIGHT, weight, out) or not _parameter(&call, BIAS, bias, out)
                or not _fusion(&call, activation, slope, residual, <cnp.ndarray>x, out)):
            return None
        y = _output(&call, out, <cnp.ndarray>x)
        mean, m2 = _per_channel(&call, 0), _per_channel(&call, 1)
        _run(&call, _train)
    finally:
        _close(&call)
    _freeze(mean)
    _freeze(m2)
    return y, _counts(&call), mean, m2


def fast_infer(x, mean, var, weight, bias, axis, eps, out, int n_threads, activation=None, slope=0.0, residual=None):
    """Compute batch_norm_infer, or return None if an argument is not canonical."""
    cdef Call call
    cdef cnp.ndarray y
    if mean is None or var is None or not _open(&call, x, axis, eps, n_threads):
        return None
    try:
        if (not _output_fits(out, <cnp.ndarray>x, None) or not _parameter(&call, WEIGHT, weight, out)
                or not _parameter(&call, BIAS, bias, out) or not _parameter(&call, MEAN, mean, out)
                or not _parameter(&call, VAR, var, out)
                or not _fusion(&call, activation, slope, residual, <cnp.ndarray>x, out)):
            return None
        y = _output(&call, out, <cnp.ndarray>x)
        _run(&call, _normalize)
    finally:
        _close(&call)
    return y


def fast_train_backward(dy, x, count, mean, m2, weight, axis, eps, out, int n_threads, bias=None,
                        activation=None, slope=0.0, residual=None, dresidual=None):
    """Compute batch_norm_train_backward; return (dx, dweight, dbias), or None if an argument is not canonical."""
    cdef Call call
    cdef double own
    if not _open(&call, x, axis, eps, n_threads):
        return None
    own = <double>_count(&call)
    try:
        if (not _fused_backward(&call, <cnp.ndarray>x, dy, weight, bias, out, activation, slope, residual, dresidual)
                or not _moments(&call, count, mean, m2, out, own, own)):
            return None
        return _backward(&call, _train_backward, <cnp.ndarray>x, weight, out)
    finally:
        _close(&call)


def fast_infer_backward(dy, x, mean, var, weight, axis, eps, out, int n_threads, bias=None, activation=None,
                        slope=0.0, residual=None, dresidual=None):
    """Compute batch_norm_infer_backward; return (dx, dweight, dbias), or None if an argument is not canonical."""
    cdef Call call
    if mean is None or var is None or not _open(&call, x, axis, eps, n_threads):
        return None
    try:
        if (not _fused_backward(&call, <cnp.ndarray>x, dy, weight, bias, out, activation, slope, residual, dresidual)
                or not _parameter(&call, MEAN, mean, out) or not _parameter(&call, VAR, var, out)
                or not _apart_or_none(dresidual, mean) or not _apart_or_none(dresidual, var)):
            return None
        return _backward(&call, _infer_backward, <cnp.ndarray>x, weight, out)
    finally:
        _close(&call)
