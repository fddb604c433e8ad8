# The fast path of update_running_stats; see fast_calls.pxi.

from cpython.float cimport PyFloat_AS_DOUBLE, PyFloat_CheckExact
from cpython.long cimport PyLong_AsLongLongAndOverflow, PyLong_CheckExact
from libc.math cimport floor, isfinite
from libc.stdint cimport int64_t

cimport numpy as cnp


cdef double ROUNDING = 1e-5  # that of bncore.statistics.moments
cdef int64_t EXACT = 9007199254740992  # 2**53: the integers below it are doubles


cdef inline bint _running(object a_, cnp.npy_intp channels) noexcept:
    """Tell whether `a` is a (C,) array of float64 that can be updated in place."""
    if not _plain(a_):
        return False
    cdef cnp.ndarray a = <cnp.ndarray>a_
    return (cnp.PyArray_TYPE(a) == cnp.NPY_DOUBLE and cnp.PyArray_NDIM(a) == 1 and cnp.PyArray_DIM(a, 0) == channels
            and cnp.PyArray_IS_C_CONTIGUOUS(a) and cnp.PyArray_ISWRITEABLE(a))


cdef bint _corrected(object given, double *correction) noexcept:
    """Read a correction; return False if it is not canonical or no double represents it."""
    cdef int overflow = 0
    cdef long long number
    if PyFloat_CheckExact(given):
        correction[0] = PyFloat_AS_DOUBLE(given)
        return isfinite(correction[0])
    if not PyLong_CheckExact(given):
        return False
    number = PyLong_AsLongLongAndOverflow(given, &overflow)
    correction[0] = <double>number
    return not overflow and -EXACT < number < EXACT


cdef inline double _divisor(double count, double correction) noexcept:
    """Compute divisor of bncore.statistics: what m2 is divided by, for a variance."""
    cdef double left = count - correction
    cdef bint rounded = left <= ROUNDING * correction and count != floor(count)
    return 0.0 if rounded or left <= 0.0 else left


def fast_running(running_mean, running_var, cnp.ndarray count, cnp.ndarray mean, cnp.ndarray m2, momentum_,
                 correction_):
    """Compute update_running_stats with the arrays of a Moments; return True, or None if one is not canonical."""
    cdef cnp.npy_intp c, channels = cnp.PyArray_DIM(mean, 0)
    cdef double correction
    if not (PyFloat_CheckExact(momentum_) and _running(running_mean, channels) and _running(running_var, channels)
            and _apart(<cnp.ndarray>running_mean, running_var) and _corrected(correction_, &correction)):
        return None
    cdef double momentum = PyFloat_AS_DOUBLE(momentum_), keep, old_mean, old_var, new_mean, new_var
    if not 0.0 <= momentum <= 1.0:
        return None
    cdef double *to_mean = _doubles(running_mean)
    cdef double *to_var = _doubles(running_var)
    cdef const double *counts = _doubles(count)
    cdef const double *batch_mean = _doubles(mean)
    cdef const double *batch_m2 = _doubles(m2)
    cdef bncore_environment own
    bncore_environment_enter(&own)
    for c in range(channels):
        if counts[c] != 0.0 and not _divisor(counts[c], correction) > 0.0:
            bncore_environment_leave(&own)
            return None
    keep = 1.0 - momentum
    for c in range(channels):  # selects values, so that the compiler can make vectors of the channels
        old_mean, old_var = to_mean[c], to_var[c]
        new_mean = keep * old_mean + momentum * batch_mean[c]
        new_var = keep * old_var + momentum * (batch_m2[c] / (counts[c] - correction))
        to_mean[c] = new_mean if counts[c] > 0.0 else old_mean
        to_var[c] = new_var if counts[c] > 0.0 else old_var
    bncore_environment_leave(&own)
    return True
