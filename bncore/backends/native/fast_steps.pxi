# The fast path of the steps (moments, normalize, grad_sums, grad_input) and of mean_var; see fast_calls.pxi.

from libc.stdint cimport int64_t, uint64_t

cimport numpy as cnp


cdef bncore_status _only_moments(const Call *c) noexcept nogil:
    return bncore_moments(&c.problem, c.results[0], c.results[1], c.x)


cdef bncore_status _grad_sums(const Call *c) noexcept nogil:
    return bncore_grad_sums(&c.problem, c.results[0], c.results[1], c.dy, c.x, c.given[MEAN], c.given[VAR])


cdef bncore_status _grad_input(const Call *c) noexcept nogil:
    return bncore_grad_input(&c.problem, c.to, c.dy, c.x, c.given[MEAN], c.given[VAR], c.given[SUM_DY],
                             c.given[SUM_DY_XHAT], c.given[COUNT], c.given[WEIGHT])


def fast_moments(x, axis, int n_threads, bint float64_sums=False):
    """Compute moments; return (count, mean, m2), or None if an argument is not canonical."""
    cdef Call call
    if not _open(&call, x, axis, 0.0, n_threads):
        return None
    call.problem.flags = BNCORE_FLOAT64_SUMS if float64_sums else 0
    cdef cnp.ndarray mean = _per_channel(&call, 0), m2 = _per_channel(&call, 1)
    _run(&call, _only_moments)
    _freeze(mean)
    _freeze(m2)
    return _counts(&call), mean, m2


def fast_normalize(x, count, mean, m2, weight, bias, axis, eps, out, int n_threads):
    """Compute normalize, or return None if an argument is not canonical."""
    cdef Call call
    cdef cnp.ndarray y
    if not _open(&call, x, axis, eps, n_threads):
        return None
    try:
        if (not _output_fits(out, <cnp.ndarray>x, None) or not _parameter(&call, WEIGHT, weight, out)
                or not _parameter(&call, BIAS, bias, out)
                or not _moments(&call, count, mean, m2, out, 0.0, DBL_MAX)):
            return None
        y = _output(&call, out, <cnp.ndarray>x)
        _run(&call, _normalize)
    finally:
        _close(&call)
    return y


def fast_grad_sums(dy, x, count, mean, m2, axis, eps, int n_threads):
    """Compute grad_sums; return (sum_dy, sum_dy_xhat), or None if an argument is not canonical."""
    cdef Call call
    cdef cnp.ndarray sum_dy, sum_dy_xhat
    if not _open(&call, x, axis, eps, n_threads):
        return None
    try:
        if (not _gradient(&call, dy, <cnp.ndarray>x)
                or not _moments(&call, count, mean, m2, None, <double>_count(&call), DBL_MAX)):
            return None
        sum_dy, sum_dy_xhat = _per_channel(&call, 0), _per_channel(&call, 1)
        _run(&call, _grad_sums)
    finally:
        _close(&call)
    _freeze(sum_dy)
    _freeze(sum_dy_xhat)
    return sum_dy, sum_dy_xhat


def fast_grad_input(dy, x, count, mean, m2, sum_dy, sum_dy_xhat, weight, axis, eps, out, int n_threads):
    """Compute grad_input, or return None if an argument is not canonical."""
    cdef Call call
    cdef cnp.ndarray dx
    if sum_dy is None or sum_dy_xhat is None or not _open(&call, x, axis, eps, n_threads):
        return None
    try:
        if (not _gradient(&call, dy, <cnp.ndarray>x)
                or not _output_fits(out, <cnp.ndarray>x, dy) or not _parameter(&call, WEIGHT, weight, out)
                or not _moments(&call, count, mean, m2, out, <double>_count(&call), DBL_MAX)
                or not _parameter(&call, SUM_DY, sum_dy, out)
                or not _parameter(&call, SUM_DY_XHAT, sum_dy_xhat, out)):
            return None
        dx = _output(&call, out, <cnp.ndarray>x)
        _run(&call, _grad_input)
    finally:
        _close(&call)
    return dx


cdef inline bint _one_axis(object axis, int rank, uint64_t *reduced) noexcept:
    """Add an axis to the axes of mean_var; return False if it is not canonical or was given before."""
    cdef int one = _axis(axis, rank)
    if one < 0 or reduced[0] >> one & 1:
        return False
    reduced[0] |= <uint64_t>1 << one
    return True


cdef bint _axes(object axis, int rank, uint64_t *reduced) noexcept:
    """Read the axes of mean_var into a bit set, without allocating; return False if one is not canonical."""
    if axis is None:
        reduced[0] = ~<uint64_t>0
        return True
    reduced[0] = 0
    if type(axis) is not tuple:
        return _one_axis(axis, rank, reduced)
    for given in <tuple>axis:
        if not _one_axis(given, rank, reduced):
            return False
    return True


cdef bint _correction(object given, double *correction) noexcept:
    """Read the correction of mean_var; return False if it is not canonical."""
    cdef int overflow = 0
    if PyFloat_CheckExact(given):
        correction[0] = PyFloat_AS_DOUBLE(given)
    elif PyLong_CheckExact(given):
        correction[0] = <double>PyLong_AsLongAndOverflow(given, &overflow)
    else:
        return False
    return not overflow and isfinite(correction[0])


cdef object _reduced(cnp.ndarray values, int dtype):
    """Return values in a dtype, or a scalar if there is a single value and no axis."""
    cdef cnp.ndarray result = _rounded(values, dtype)
    return result if cnp.PyArray_NDIM(result) else cnp.PyArray_ToScalar(cnp.PyArray_DATA(result), result)


def fast_mean_var(x_, axis, correction_, keepdims, int n_threads, bint float64_sums=False):
    """Compute mean_var, or return None if an argument is not canonical or x would have to be copied."""
    cdef Call call
    cdef uint64_t reduced, kept = 0
    cdef double correction
    cdef double *values
    cdef cnp.npy_intp sizes[64]  # NumPy's largest number of dimensions
    cdef int i, rank, left = 0
    if not _is_data(x_) or not (keepdims is True or keepdims is False) or not _correction(correction_, &correction):
        return None
    cdef cnp.ndarray x = <cnp.ndarray>x_
    rank = cnp.PyArray_NDIM(x)
    if not _axes(axis, rank, &reduced):
        return None
    for i in range(rank):
        if reduced >> i & 1:
            if keepdims is False:
                continue
            sizes[left] = 1
        else:
            sizes[left] = cnp.PyArray_DIM(x, i)
            if sizes[left] != 1:  # the place of an axis of size 1 is arbitrary
                kept |= <uint64_t>1 << i
        left += 1
    if not _split(&call, x, kept, n_threads):
        return None
    call.problem.flags = BNCORE_FLOAT64_SUMS if float64_sums else 0
    cdef cnp.ndarray mean = cnp.PyArray_EMPTY(left, sizes, cnp.NPY_DOUBLE, 0)
    cdef cnp.ndarray var = cnp.PyArray_EMPTY(left, sizes, cnp.NPY_DOUBLE, 0)
    call.results[0], call.results[1] = _doubles(mean), _doubles(var)
    _run(&call, _only_moments)
    values = _doubles(var)
    _divide(values, values, _divisor(<double>_count(&call), correction), call.problem.channels)
    cdef int dtype = BNCORE_FLOAT64 if float64_sums else call.problem.dtype
    return _reduced(mean, dtype), _reduced(var, dtype)
