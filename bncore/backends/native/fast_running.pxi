# The fast path of update_running_stats; see fast_calls.pxi.

from cpython.float cimport PyFloat_AS_DOUBLE, PyFloat_CheckExact
from cpython.long cimport PyLong_AsLongAndOverflow, PyLong_CheckExact
from libc.math cimport isfinite
from libc.stdint cimport int64_t

cimport numpy as cnp


cdef int64_t EXACT = 9007199254740992  # 2**53: the integers below it are doubles


cdef inline bint _running(object a_, cnp.npy_intp channels) noexcept:
    """Tell whether `a` is a (C,) array of float64 that can be updated in place."""
    if not _plain(a_):
        return False
    cdef cnp.ndarray a = <cnp.ndarray>a_
    return (cnp.PyArray_TYPE(a) == cnp.NPY_DOUBLE and cnp.PyArray_NDIM(a) == 1 and cnp.PyArray_DIM(a, 0) == channels
            and cnp.PyArray_IS_C_CONTIGUOUS(a) and cnp.PyArray_ISWRITEABLE(a))


def fast_running(running_mean, running_var, count_, cnp.ndarray mean, cnp.ndarray m2, momentum_, correction_):
    """Compute update_running_stats with the arrays of a Moments; return True, or None if one is not canonical."""
    cdef int overflow = 0
    cdef cnp.npy_intp c, channels = cnp.PyArray_DIM(mean, 0)
    if not (PyFloat_CheckExact(momentum_) and PyLong_CheckExact(count_) and _running(running_mean, channels)
            and _running(running_var, channels) and _apart(<cnp.ndarray>running_mean, running_var)):
        return None
    cdef long count = PyLong_AsLongAndOverflow(count_, &overflow)
    cdef double momentum = PyFloat_AS_DOUBLE(momentum_), correction
    if PyFloat_CheckExact(correction_):
        correction = PyFloat_AS_DOUBLE(correction_)
    elif PyLong_CheckExact(correction_) and -EXACT < correction_ < EXACT:
        correction = <double>correction_
    else:
        return None
    # Use Python's own arithmetic for counts that a double cannot represent.
    if overflow or not (0 < count < EXACT) or not 0.0 <= momentum <= 1.0 or not isfinite(correction):
        return None
    cdef double divisor = <double>count - correction, keep
    if not divisor > 0.0:
        return None
    cdef double *to_mean = _doubles(running_mean)
    cdef double *to_var = _doubles(running_var)
    cdef const double *batch_mean = _doubles(mean)
    cdef const double *batch_m2 = _doubles(m2)
    cdef bncore_environment own
    bncore_environment_enter(&own)
    keep = 1.0 - momentum
    for c in range(channels):
        to_mean[c] = keep * to_mean[c] + momentum * batch_mean[c]
        to_var[c] = keep * to_var[c] + momentum * (batch_m2[c] / divisor)
    bncore_environment_leave(&own)
    return True
