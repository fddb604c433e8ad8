# The dtypes of the fast path, and the conversions of values per channel from and to float64; see fast_calls.pxi.
#
# NumPy gives each dtype a number. That of bfloat16, which ml_dtypes registers, is known once such an array was seen.

from libc.stdint cimport uint16_t, uint32_t
from libc.string cimport memcpy, strcmp, strrchr

cdef extern from "kernels/storage.h" nogil:
    float load_f16(uint16_t stored)
    uint16_t store_f16(float value)
    float load_bf16(uint16_t stored)
    uint16_t store_bf16(float value)

cdef enum:
    UNKNOWN = -1

cdef int bfloat16_number = UNKNOWN


cdef bint _names_bfloat16(cnp.ndarray a) noexcept:
    """Tell whether the dtype of an array is the bfloat16 that a library has registered."""
    cdef cnp.dtype dtype = <cnp.dtype><void *>cnp.PyArray_DESCR(a)
    cdef const char *name = dtype.typeobj.tp_name
    cdef const char *dot = strrchr(name, ord("."))
    return dtype.kind == ord("V") and cnp.PyArray_ITEMSIZE(a) == 2 and not strcmp(dot + 1 if dot else name, "bfloat16")


cdef inline int _dtype(cnp.ndarray a) noexcept:
    """Return the bncore_dtype of an array, or UNKNOWN if it has another dtype."""
    global bfloat16_number
    cdef int number = cnp.PyArray_TYPE(a)
    if number == cnp.NPY_FLOAT:
        return BNCORE_FLOAT32
    if number == cnp.NPY_DOUBLE:
        return BNCORE_FLOAT64
    if number == NPY_HALF:
        return BNCORE_FLOAT16
    if number < NPY_USERDEF:
        return UNKNOWN
    if bfloat16_number == UNKNOWN and _names_bfloat16(a):
        bfloat16_number = number
    return BNCORE_BFLOAT16 if number == bfloat16_number else UNKNOWN


cdef inline int _number(int dtype) noexcept:
    """Return NumPy's number of a bncore_dtype."""
    if dtype == BNCORE_FLOAT32:
        return cnp.NPY_FLOAT
    if dtype == BNCORE_FLOAT64:
        return cnp.NPY_DOUBLE
    return NPY_HALF if dtype == BNCORE_FLOAT16 else bfloat16_number


cdef inline float _towards_odd(double value) noexcept nogil:
    """Round to float32 so that a second rounding, to 16 bits, gives what one rounding gives.

    An inexact result gets an odd last digit. It is then neither a value of 16 bits nor halfway between two of them.
    """
    cdef float nearest = <float>value
    cdef uint32_t digits
    memcpy(&digits, &nearest, sizeof(digits))
    if <double>nearest == value or not isfinite(nearest) or digits & 1:
        return nearest
    if (<double>nearest < value) == (value > 0.0):  # nearest is closer to 0 than the value
        digits += 1
    else:
        digits -= 1
    memcpy(&nearest, &digits, sizeof(digits))
    return nearest


cdef void _widen(double *to, const void *values, int dtype, cnp.npy_intp n) noexcept nogil:
    """Convert values to float64 in the floating-point environment of the kernels."""
    cdef bncore_environment own
    cdef cnp.npy_intp i
    bncore_environment_enter(&own)
    for i in range(n):
        if dtype == BNCORE_FLOAT32:
            to[i] = (<const float *>values)[i]
        elif dtype == BNCORE_FLOAT16:
            to[i] = load_f16((<const uint16_t *>values)[i])
        else:
            to[i] = load_bf16((<const uint16_t *>values)[i])
    bncore_environment_leave(&own)


cdef void _round(void *to, const double *values, int dtype, cnp.npy_intp n) noexcept nogil:
    """Convert values from float64 in the floating-point environment of the kernels."""
    cdef bncore_environment own
    cdef cnp.npy_intp i
    bncore_environment_enter(&own)
    for i in range(n):
        if dtype == BNCORE_FLOAT32:
            (<float *>to)[i] = <float>values[i]
        elif dtype == BNCORE_FLOAT16:
            (<uint16_t *>to)[i] = store_f16(_towards_odd(values[i]))
        else:
            (<uint16_t *>to)[i] = store_bf16(_towards_odd(values[i]))
    bncore_environment_leave(&own)


cdef void _divide(double *to, const double *values, double divisor, cnp.npy_intp n) noexcept nogil:
    """Divide in the floating-point environment of the kernels."""
    cdef bncore_environment own
    cdef cnp.npy_intp i
    bncore_environment_enter(&own)
    for i in range(n):
        to[i] = values[i] / divisor
    bncore_environment_leave(&own)


cdef void _divide_by_each(double *to, const double *values, const double *divisors, cnp.npy_intp n) noexcept nogil:
    """Divide each value by its own divisor in the floating-point environment of the kernels."""
    cdef bncore_environment own
    cdef cnp.npy_intp i
    bncore_environment_enter(&own)
    for i in range(n):
        to[i] = values[i] / divisors[i]
    bncore_environment_leave(&own)


cdef inline cnp.ndarray _rounded(cnp.ndarray values, int dtype):
    """Round an array of float64 once and without warnings; values that are too large become infinite."""
    if dtype == BNCORE_FLOAT64:
        return values
    cdef cnp.ndarray rounded = cnp.PyArray_EMPTY(cnp.PyArray_NDIM(values), cnp.PyArray_DIMS(values), _number(dtype), 0)
    _round(cnp.PyArray_DATA(rounded), _doubles(values), dtype, cnp.PyArray_SIZE(values))
    return rounded


def in_float32(cnp.ndarray values):
    """Return an array of float16, or of the bits of bfloat16, as new float32."""
    cdef cnp.ndarray given = cnp.PyArray_GETCONTIGUOUS(values)
    cdef cnp.ndarray wide = cnp.PyArray_EMPTY(cnp.PyArray_NDIM(given), cnp.PyArray_DIMS(given), cnp.NPY_FLOAT, 0)
    cdef const uint16_t *stored = <const uint16_t *>cnp.PyArray_DATA(given)
    cdef float *to = <float *>cnp.PyArray_DATA(wide)
    cdef bint is_float16 = cnp.PyArray_TYPE(given) == NPY_HALF
    cdef cnp.npy_intp i, n = cnp.PyArray_SIZE(given)
    cdef bncore_environment own
    with nogil:
        bncore_environment_enter(&own)
        if is_float16:
            for i in range(n):
                to[i] = load_f16(stored[i])
        else:
            for i in range(n):
                to[i] = load_bf16(stored[i])
        bncore_environment_leave(&own)
    return wide


def store_float32(cnp.ndarray to, cnp.ndarray values):
    """Round an array of float32 to float16 or to the bits of bfloat16; both are contiguous and of one size."""
    cdef const float *given = <const float *>cnp.PyArray_DATA(values)
    cdef uint16_t *stored = <uint16_t *>cnp.PyArray_DATA(to)
    cdef bint is_float16 = cnp.PyArray_TYPE(to) == NPY_HALF
    cdef cnp.npy_intp i, n = cnp.PyArray_SIZE(to)
    cdef bncore_environment own
    if not cnp.PyArray_IS_C_CONTIGUOUS(to) or not cnp.PyArray_IS_C_CONTIGUOUS(values) or cnp.PyArray_SIZE(values) != n:
        raise ValueError("store_float32: expected contiguous arrays of one size")
    with nogil:
        bncore_environment_enter(&own)
        if is_float16:
            for i in range(n):
                stored[i] = store_f16(given[i])
        else:
            for i in range(n):
                stored[i] = store_bf16(given[i])
        bncore_environment_leave(&own)
