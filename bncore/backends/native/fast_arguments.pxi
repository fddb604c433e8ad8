# The arguments that the fast path (fast_calls.pxi, fast_steps.pxi) accepts as canonical: an exact, aligned,
# native-endian ndarray of a dtype of bncore.h, contiguous in C order or channels-last; an exact int or float.
#
# If an argument is refused here, bncore.arguments converts it or raises an error that explains what is wrong. The
# functions are noexcept because they only look at types, sizes and addresses: nothing in them raises, so their callers
# need not check for exceptions.

from cpython.float cimport PyFloat_AS_DOUBLE, PyFloat_CheckExact
from cpython.long cimport PyLong_AsLongAndOverflow, PyLong_CheckExact
from libc.float cimport DBL_MAX, FLT_MAX
from libc.math cimport isfinite
from libc.stdint cimport int64_t, uint64_t, uintptr_t
from libc.stdlib cimport free, malloc

from bncore.backends.native.c_bncore cimport bncore_canonical

cdef extern from "numpy/arrayobject.h":
    cnp.ndarray PyArray_NewLikeArray(cnp.ndarray like, cnp.NPY_ORDER order, void *dtype, int subok)
    void PyArray_CLEARFLAGS(cnp.ndarray array, int flags)


cdef enum:
    FEW = 256          # the number of channels whose parameters fit on the stack
    FEW_VALUES = 4096  # for an x of this many values, releasing the GIL would take longer than the work

cdef enum:  # the arguments of a call with one value per channel
    WEIGHT
    BIAS
    MEAN
    VAR
    SUM_DY
    SUM_DY_XHAT
    COUNT
    PARAMETERS


cdef struct Call:
    bncore_problem problem
    bncore_fusion fusion             # problem's, where there is one
    bint channels_last
    const void *x
    const void *dy
    void *to                         # y or dx
    double *results[2]               # mean and m2, or sum_dy and sum_dy_xhat
    const double *given[PARAMETERS]  # the caller's own memory where that is float64, else a copy in `few` or `many`
    double *many
    double few[PARAMETERS * FEW]


cdef inline bint _plain(object a) noexcept:
    """Tell whether `a` is an exact ndarray, aligned and native-endian."""
    return cnp.PyArray_CheckExact(a) and cnp.PyArray_ISBEHAVED_RO(<cnp.ndarray>a)


cdef inline bint _is_channels_last(cnp.ndarray x, int rank) noexcept:
    """Tell whether all strides of x of shape (N, C, ...) are those of an array that lies in memory as (N, ..., C)."""
    cdef cnp.npy_intp *shape = cnp.PyArray_DIMS(x)
    cdef cnp.npy_intp *strides = cnp.PyArray_STRIDES(x)
    cdef cnp.npy_intp step = cnp.PyArray_ITEMSIZE(x)
    cdef int i
    if strides[1] != step:
        return False
    step *= shape[1]
    for i in range(rank - 1, 1, -1):
        if strides[i] != step:
            return False
        step *= shape[i]
    return strides[0] == step


cdef inline bint _is_data(object x) noexcept:
    """Tell whether `x` is a plain array of a dtype of bncore.h."""
    return _plain(x) and _dtype(<cnp.ndarray>x) != UNKNOWN


cdef inline int _axis(object axis_, int rank) noexcept:
    """Return an axis counted from 0, or -1 if it is not canonical."""
    cdef int overflow = 0
    if not PyLong_CheckExact(axis_):
        return -1
    cdef long axis = PyLong_AsLongAndOverflow(axis_, &overflow)
    if overflow or axis >= rank or axis < -rank:
        return -1
    return <int>(axis + rank if axis < 0 else axis)


cdef bint _split(Call *call, cnp.ndarray x, uint64_t kept, int n_threads) noexcept:
    """Fill call->problem from x. Return False if x is empty or the axes in the bit set do not lie together in order."""
    cdef int rank = cnp.PyArray_NDIM(x)
    cdef cnp.npy_intp *shape = cnp.PyArray_DIMS(x)
    cdef int64_t sizes[64]  # the sizes of the axes in memory order; NumPy allows at most 64
    cdef int64_t canonical[3]
    cdef int i, at, last = -1, start = rank, stop = rank
    cdef bint ended = False  # whether an axis that is not kept follows those that are
    call.channels_last = not cnp.PyArray_IS_C_CONTIGUOUS(x)
    if call.channels_last and (rank < 2 or not _is_channels_last(x, rank)):
        return False
    for i in range(rank):
        at = i
        if call.channels_last and i > 0:
            at = i + 1 if i < rank - 1 else 1
        sizes[i] = shape[at]
        if kept >> at & 1:
            if ended or at < last:
                return False
            start, stop, last = min(start, i), i + 1, at
        elif start < rank and shape[at] != 1:
            ended = True
    bncore_canonical(sizes, rank, start, stop, canonical)
    if canonical[0] * canonical[2] < 1 or canonical[1] < 1:
        return False
    bncore_problem_init(&call.problem, sizeof(bncore_problem),
                        <bncore_dtype>_dtype(x), canonical[0], canonical[1], canonical[2])
    call.problem.n_threads = n_threads
    call.x = cnp.PyArray_DATA(x)
    call.many = NULL
    return True


cdef bint _open(Call *call, object x, object axis_, object eps_, int n_threads) noexcept:
    """Fill call->problem from x; return False if anything is not canonical."""
    if not _is_data(x) or not PyFloat_CheckExact(eps_):
        return False
    cdef double eps = PyFloat_AS_DOUBLE(eps_)
    cdef int rank = cnp.PyArray_NDIM(<cnp.ndarray>x)
    cdef int axis = _axis(axis_, rank)
    if rank < 2 or axis < 0 or not (eps >= 0.0 and isfinite(eps)):
        return False
    if not _split(call, <cnp.ndarray>x, <uint64_t>1 << axis, n_threads) or (call.channels_last and axis != 1):
        return False
    call.problem.eps = eps
    return True


cdef inline void _close(Call *call) noexcept:
    free(call.many)


cdef inline int64_t _count(Call *call) noexcept nogil:
    """Return the number of x's values per channel."""
    return call.problem.outer * call.problem.inner


cdef inline double *_room(Call *call, int which) noexcept:
    """Return memory for one of the parameters, or NULL if there is none left."""
    cdef int64_t channels = call.problem.channels
    if channels <= FEW:
        return call.few + which * channels
    if call.many == NULL:
        call.many = <double *>malloc(PARAMETERS * sizeof(double) * <size_t>channels)
    return NULL if call.many == NULL else call.many + which * channels


cdef inline bint _same_place(cnp.ndarray a, cnp.ndarray b) noexcept:
    """Tell whether two arrays have the same type, shape and strides."""
    cdef int i, rank = cnp.PyArray_NDIM(a)
    if cnp.PyArray_NDIM(b) != rank or cnp.PyArray_TYPE(a) != cnp.PyArray_TYPE(b):
        return False
    for i in range(rank):
        if cnp.PyArray_DIM(a, i) != cnp.PyArray_DIM(b, i) or cnp.PyArray_STRIDE(a, i) != cnp.PyArray_STRIDE(b, i):
            return False
    return True


cdef inline bint _apart(cnp.ndarray a, object b_) noexcept:
    """Tell whether two contiguous arrays have no byte in common."""
    if b_ is None:
        return True
    cdef cnp.ndarray b = <cnp.ndarray>b_
    cdef uintptr_t at = <uintptr_t>cnp.PyArray_DATA(a), bt = <uintptr_t>cnp.PyArray_DATA(b)
    return at + <uintptr_t>cnp.PyArray_NBYTES(a) <= bt or bt + <uintptr_t>cnp.PyArray_NBYTES(b) <= at


cdef inline bint _apart_or_none(object a, object b) noexcept:
    """Tell the same for arrays that may be None."""
    return a is None or _apart(<cnp.ndarray>a, b)


cdef inline bint _gradient(Call *call, object dy, cnp.ndarray x) noexcept:
    """Set call->dy to the memory of `dy`; return False if `dy` differs from x in type, shape or strides."""
    if not _plain(dy) or not _same_place(<cnp.ndarray>dy, x):
        return False
    call.dy = cnp.PyArray_DATA(<cnp.ndarray>dy)
    return True


cdef inline bint _output_fits(object out_, cnp.ndarray x, object dy) noexcept:
    """Tell whether the kernel can write to `out`: it is writable and like x, and is x or dy or overlaps neither."""
    if out_ is None:
        return True
    if not _plain(out_):
        return False
    cdef cnp.ndarray out = <cnp.ndarray>out_
    if not cnp.PyArray_ISWRITEABLE(out) or not _same_place(out, x):
        return False
    if cnp.PyArray_DATA(out) != cnp.PyArray_DATA(x) and not _apart(out, x):
        return False
    return dy is None or cnp.PyArray_DATA(out) == cnp.PyArray_DATA(<cnp.ndarray>dy) or _apart(out, dy)


cdef inline bint _itself_or_apart(object out_, object other) noexcept:
    """Tell whether `out` is `other` or does not overlap it. Both are like x in memory; `other` may be None."""
    if out_ is None or other is None:
        return True
    cdef cnp.ndarray out = <cnp.ndarray>out_
    return cnp.PyArray_DATA(out) == cnp.PyArray_DATA(<cnp.ndarray>other) or _apart(out, other)


cdef bint _fusion(Call *call, object activation, object slope, object residual, cnp.ndarray x, object out) noexcept:
    """Read the fused operations into call->problem; return False if not canonical. `out` is None or checked."""
    if not PyFloat_CheckExact(slope):
        return False
    cdef double given = PyFloat_AS_DOUBLE(slope)
    cdef double largest = DBL_MAX if call.problem.dtype == BNCORE_FLOAT64 else FLT_MAX
    if not 0.0 <= given <= largest:
        return False
    if activation is None and residual is None:
        return True
    bncore_fusion_init(&call.fusion, sizeof(bncore_fusion))
    call.fusion.activation, call.fusion.slope = _activation(activation), given
    call.problem.fusion = &call.fusion
    if call.fusion.activation < 0:
        return False
    if residual is None:
        return True
    if not _plain(residual) or not _same_place(<cnp.ndarray>residual, x):
        return False
    call.fusion.residual = cnp.PyArray_DATA(<cnp.ndarray>residual)
    return _itself_or_apart(out, residual)


cdef bint _residual_gradient(Call *call, object dresidual_, cnp.ndarray x, object dy, object residual,
                             object out) noexcept:
    """Tell whether the kernel can write to `dresidual`: it may be dy or residual itself, and overlaps nothing else."""
    if dresidual_ is None:
        return True
    if not _plain(dresidual_):
        return False
    cdef cnp.ndarray dresidual = <cnp.ndarray>dresidual_
    if not cnp.PyArray_ISWRITEABLE(dresidual) or not _same_place(dresidual, x):
        return False
    if not (_apart(dresidual, x) and _apart(dresidual, out) and _itself_or_apart(dresidual, dy)
            and _itself_or_apart(dresidual, residual)):
        return False
    if call.problem.fusion == NULL:  # without an activation and a residual, problem.py handles dresidual
        return False
    call.fusion.dresidual = cnp.PyArray_DATA(dresidual)
    return True


cdef bint _parameter(Call *call, int which, object a_, object out) noexcept:
    """Put a (C,) parameter into call->given as float64; return False if it is not canonical. None is allowed."""
    cdef int64_t channels = call.problem.channels
    cdef double *to
    call.given[which] = NULL
    if a_ is None:
        return True
    if not _is_data(a_):
        return False
    cdef cnp.ndarray a = <cnp.ndarray>a_
    if cnp.PyArray_NDIM(a) != 1 or cnp.PyArray_DIM(a, 0) != channels or not cnp.PyArray_IS_C_CONTIGUOUS(a):
        return False
    if not _apart_or_none(out, a):
        return False
    cdef int dtype = _dtype(a)
    if dtype == BNCORE_FLOAT64:
        call.given[which] = <const double *>cnp.PyArray_DATA(a)
        return True
    to = _room(call, which)
    if to == NULL:
        return False
    _widen(to, cnp.PyArray_DATA(a), dtype, channels)
    call.given[which] = to
    return True


cdef bint _moments(Call *call, object count, object mean, object m2, object out, double least, double most) noexcept:
    """Put count, mean and population variance of moments into call->given; return False if they do not fit x.

    They do not fit if a count is not from `least` to `most`, or is 0.
    """
    cdef int64_t c, channels = call.problem.channels
    if count is None or mean is None or m2 is None:
        return False
    cdef double *var = _room(call, VAR)
    if (var == NULL or not _parameter(call, MEAN, mean, out) or not _parameter(call, VAR, m2, out)
            or not _parameter(call, COUNT, count, out)):
        return False
    cdef const double *counts = call.given[COUNT]
    for c in range(channels):
        if not (0.0 < counts[c] and least <= counts[c] <= most):
            return False
    _divide_by_each(var, call.given[VAR], counts, channels)
    call.given[VAR] = var
    return True


cdef inline cnp.ndarray _output(Call *call, object out, cnp.ndarray x):
    """Return `out`, or a new array like x, and set call->to to its memory."""
    cdef cnp.ndarray result
    if out is not None:
        result = <cnp.ndarray>out
    elif call.channels_last:
        result = PyArray_NewLikeArray(x, cnp.NPY_KEEPORDER, NULL, 0)
    else:
        result = cnp.PyArray_EMPTY(cnp.PyArray_NDIM(x), cnp.PyArray_DIMS(x), cnp.PyArray_TYPE(x), 0)
    call.to = cnp.PyArray_DATA(result)
    return result


cdef inline cnp.ndarray _per_channel(Call *call, int which):
    """Return a new (C,) array, and set call->results to its memory."""
    cdef cnp.npy_intp channels = call.problem.channels
    cdef cnp.ndarray result = cnp.PyArray_EMPTY(1, &channels, cnp.NPY_DOUBLE, 0)
    call.results[which] = _doubles(result)
    return result


cdef inline void _freeze(cnp.ndarray values) noexcept:
    PyArray_CLEARFLAGS(values, cnp.NPY_ARRAY_WRITEABLE)


cdef inline cnp.ndarray _counts(Call *call):
    """Return a new read-only (C,) array with the number of x's values of each channel."""
    cdef cnp.npy_intp c, channels = call.problem.channels
    cdef cnp.ndarray result = cnp.PyArray_EMPTY(1, &channels, cnp.NPY_DOUBLE, 0)
    cdef double *counts = _doubles(result)
    cdef double count = <double>_count(call)
    for c in range(channels):
        counts[c] = count
    _freeze(result)
    return result
