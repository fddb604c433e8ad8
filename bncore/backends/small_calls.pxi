# The small-call paths of native.pyx, which includes this file: a module of its own would need a second copy of the C
# core, whose chosen kernels are state.
#
# Each function (fast_*) takes a caller's own arguments and says None unless all are already canonical: an exact,
# aligned, native-endian ndarray of float32 or float64, contiguous in C order or channels-last. No rule is explained
# here: what is refused goes to bncore.problem, which repairs or explains.

from cpython.float cimport PyFloat_AS_DOUBLE, PyFloat_CheckExact
from cpython.long cimport PyLong_AsLongAndOverflow, PyLong_CheckExact
from libc.float cimport DBL_MAX, FLT_MAX
from libc.math cimport isfinite
from libc.stdint cimport int64_t, uintptr_t
from libc.stdlib cimport free, malloc

cdef extern from "numpy/arrayobject.h":
    cnp.ndarray PyArray_NewLikeArray(cnp.ndarray like, cnp.NPY_ORDER order, void *dtype, int subok)
    void PyArray_CLEARFLAGS(cnp.ndarray array, int flags)


cdef enum:
    FEW = 256        # channels whose parameters fit on the stack
    PARAMETERS = 4   # of them, at most, in one call


cdef struct Call:
    bncore_problem problem
    bncore_fusion fusion     # problem's, where there is one
    bint channels_last
    double *parameters       # PARAMETERS x channels
    double few[PARAMETERS * FEW]


cdef inline bint _plain(object a) noexcept:
    """Whether `a` is an exact ndarray, aligned and native-endian."""
    return cnp.PyArray_CheckExact(a) and cnp.PyArray_ISBEHAVED_RO(<cnp.ndarray>a)


cdef inline bint _is_channels_last(cnp.ndarray x, int rank) noexcept:
    """Whether x of shape (N, C, ...) lies in memory as (N, ..., C), with no dimension of size 1 to muddle strides."""
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


cdef bint _open(Call *call, object x_, object axis_, object eps_, int n_threads) noexcept:
    """Fill call->problem from x; False where anything is not canonical."""
    cdef int overflow = 0, i, kind
    cdef long axis
    cdef int64_t outer = 1, inner = 1
    if not _plain(x_) or not PyLong_CheckExact(axis_) or not PyFloat_CheckExact(eps_):
        return False
    cdef cnp.ndarray x = <cnp.ndarray>x_
    cdef int rank = cnp.PyArray_NDIM(x)
    cdef cnp.npy_intp *shape = cnp.PyArray_DIMS(x)
    cdef double eps = PyFloat_AS_DOUBLE(eps_)
    kind = cnp.PyArray_TYPE(x)
    if (kind != cnp.NPY_FLOAT and kind != cnp.NPY_DOUBLE) or rank < 2 or not (eps >= 0.0 and isfinite(eps)):
        return False
    axis = PyLong_AsLongAndOverflow(axis_, &overflow)
    if overflow or axis >= rank or axis < -rank:
        return False
    if axis < 0:
        axis += rank
    call.channels_last = False
    if cnp.PyArray_IS_C_CONTIGUOUS(x):
        for i in range(axis):
            outer *= shape[i]
        for i in range(axis + 1, rank):
            inner *= shape[i]
    elif axis == 1 and _is_channels_last(x, rank):
        call.channels_last = True
        outer = cnp.PyArray_SIZE(x) // shape[1]
    else:
        return False
    if outer * inner < 1 or shape[axis] < 1:
        return False
    bncore_problem_init(&call.problem, BNCORE_FLOAT32 if kind == cnp.NPY_FLOAT else BNCORE_FLOAT64, outer,
                        shape[axis], inner)
    call.problem.eps = eps
    call.problem.n_threads = n_threads
    call.parameters = call.few
    if shape[axis] > FEW:
        call.parameters = <double *>malloc(PARAMETERS * sizeof(double) * <size_t>shape[axis])
    return call.parameters != NULL


cdef inline void _close(Call *call) noexcept:
    if call.parameters != call.few:
        free(call.parameters)


cdef inline bint _same_place(cnp.ndarray a, cnp.ndarray b) noexcept:
    """Whether two arrays have one type, shape and strides."""
    cdef int i, rank = cnp.PyArray_NDIM(a)
    if cnp.PyArray_NDIM(b) != rank or cnp.PyArray_TYPE(a) != cnp.PyArray_TYPE(b):
        return False
    for i in range(rank):
        if cnp.PyArray_DIM(a, i) != cnp.PyArray_DIM(b, i) or cnp.PyArray_STRIDE(a, i) != cnp.PyArray_STRIDE(b, i):
            return False
    return True


cdef inline bint _apart(cnp.ndarray a, object b_) noexcept:
    """Whether two contiguous blocks of memory have no byte in common."""
    if b_ is None:
        return True
    cdef cnp.ndarray b = <cnp.ndarray>b_
    cdef uintptr_t at = <uintptr_t>cnp.PyArray_DATA(a), bt = <uintptr_t>cnp.PyArray_DATA(b)
    return at + <uintptr_t>cnp.PyArray_NBYTES(a) <= bt or bt + <uintptr_t>cnp.PyArray_NBYTES(b) <= at


cdef inline bint _output_fits(object out_, cnp.ndarray x, object dy) noexcept:
    """Whether `out` can be written as it is: x's twin in memory, writable, x or dy itself or apart from both."""
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
    """Whether `out`, a twin of x in memory, is `other`, x's twin too or None, or has no byte in common with it."""
    if out_ is None or other is None:
        return True
    cdef cnp.ndarray out = <cnp.ndarray>out_
    return cnp.PyArray_DATA(out) == cnp.PyArray_DATA(<cnp.ndarray>other) or _apart(out, other)


cdef bint _fusion(Call *call, object activation, object slope, object residual, cnp.ndarray x, object out) noexcept:
    """Read what is fused into call->problem; False where it is not canonical. `out` is None or has been looked at."""
    if not PyFloat_CheckExact(slope):
        return False
    cdef double given = PyFloat_AS_DOUBLE(slope)
    cdef double largest = FLT_MAX if cnp.PyArray_TYPE(x) == cnp.NPY_FLOAT else DBL_MAX
    if not 0.0 <= given <= largest:
        return False
    if activation is None and residual is None:
        return True
    call.fusion = bncore_fusion(_activation(activation), given, NULL, NULL, NULL)
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
    """Whether `dresidual` can be written as it is: dy or residual itself or apart, and apart from x and out."""
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
    if call.problem.fusion == NULL:  # neither an activation nor a residual: problem.py knows what that means
        return False
    call.fusion.dresidual = cnp.PyArray_DATA(dresidual)
    return True


cdef bint _parameter(Call *call, int which, object a_, object out) noexcept:
    """Read a (C,) parameter into call->parameters as float64; False where it is not canonical. None is allowed."""
    cdef int64_t c, channels = call.problem.channels
    cdef double *to = call.parameters + which * channels
    if a_ is None:
        return True
    if not _plain(a_):
        return False
    cdef cnp.ndarray a = <cnp.ndarray>a_
    if cnp.PyArray_NDIM(a) != 1 or cnp.PyArray_DIM(a, 0) != channels or not cnp.PyArray_IS_C_CONTIGUOUS(a):
        return False
    if out is not None and not _apart(<cnp.ndarray>out, a):
        return False
    if cnp.PyArray_TYPE(a) == cnp.NPY_FLOAT:
        for c in range(channels):
            to[c] = (<float *>cnp.PyArray_DATA(a))[c]
    elif cnp.PyArray_TYPE(a) == cnp.NPY_DOUBLE:
        for c in range(channels):
            to[c] = (<double *>cnp.PyArray_DATA(a))[c]
    else:
        return False
    return True


cdef inline bint _parameters_apart(object dresidual, object weight, object bias) noexcept:
    """Whether dresidual has no byte of weight and bias, which are None or contiguous."""
    return dresidual is None or (_apart(<cnp.ndarray>dresidual, weight) and _apart(<cnp.ndarray>dresidual, bias))


cdef inline const double *_at(Call *call, int which, object given) noexcept nogil:
    return NULL if given is None else call.parameters + which * call.problem.channels


cdef inline cnp.ndarray _output(Call *call, object out, cnp.ndarray x):
    if out is not None:
        return <cnp.ndarray>out
    if call.channels_last:
        return PyArray_NewLikeArray(x, cnp.NPY_KEEPORDER, NULL, 0)
    return cnp.PyArray_EMPTY(cnp.PyArray_NDIM(x), cnp.PyArray_DIMS(x), cnp.PyArray_TYPE(x), 0)


cdef inline cnp.ndarray _per_channel(Call *call):
    cdef cnp.npy_intp channels = call.problem.channels
    return cnp.PyArray_EMPTY(1, &channels, cnp.NPY_DOUBLE, 0)


cdef inline cnp.ndarray _as_float32(cnp.ndarray values):
    """Round a (C,) array of float64; what is too large becomes infinite, and nothing warns."""
    cdef cnp.npy_intp c, channels = cnp.PyArray_DIM(values, 0)
    cdef cnp.ndarray rounded = cnp.PyArray_EMPTY(1, &channels, cnp.NPY_FLOAT, 0)
    for c in range(channels):
        (<float *>cnp.PyArray_DATA(rounded))[c] = <float>(<double *>cnp.PyArray_DATA(values))[c]
    return rounded


def fast_train(x, weight, bias, axis, eps, out, int n_threads, activation=None, slope=0.0, residual=None):
    """batch_norm_train as (y, count, mean, m2), the last two read-only, or None if an argument is not canonical."""
    cdef Call call
    cdef bncore_status status
    cdef cnp.ndarray y, mean, m2
    if not _open(&call, x, axis, eps, n_threads):
        return None
    cdef int64_t count = call.problem.outer * call.problem.inner
    try:
        if (count < 2 or not _output_fits(out, <cnp.ndarray>x, None) or not _parameter(&call, 0, weight, out)
                or not _parameter(&call, 1, bias, out)
                or not _fusion(&call, activation, slope, residual, <cnp.ndarray>x, out)):
            return None
        y = _output(&call, out, <cnp.ndarray>x)
        mean, m2 = _per_channel(&call), _per_channel(&call)
        with nogil:
            status = bncore_train(&call.problem, cnp.PyArray_DATA(y), _doubles(mean), _doubles(m2),
                                  cnp.PyArray_DATA(<cnp.ndarray>x), _at(&call, 0, weight), _at(&call, 1, bias))
        _check(status)
    finally:
        _close(&call)
    PyArray_CLEARFLAGS(mean, cnp.NPY_ARRAY_WRITEABLE)
    PyArray_CLEARFLAGS(m2, cnp.NPY_ARRAY_WRITEABLE)
    return y, count, mean, m2


def fast_infer(x, mean, var, weight, bias, axis, eps, out, int n_threads, activation=None, slope=0.0, residual=None):
    """batch_norm_infer, or None where an argument is not canonical."""
    cdef Call call
    cdef bncore_status status
    cdef cnp.ndarray y
    if mean is None or var is None or not _open(&call, x, axis, eps, n_threads):
        return None
    try:
        if (not _output_fits(out, <cnp.ndarray>x, None) or not _parameter(&call, 0, weight, out)
                or not _parameter(&call, 1, bias, out) or not _parameter(&call, 2, mean, out)
                or not _parameter(&call, 3, var, out)
                or not _fusion(&call, activation, slope, residual, <cnp.ndarray>x, out)):
            return None
        y = _output(&call, out, <cnp.ndarray>x)
        with nogil:
            status = bncore_normalize(&call.problem, cnp.PyArray_DATA(y), cnp.PyArray_DATA(<cnp.ndarray>x),
                                      _at(&call, 2, mean), _at(&call, 3, var), _at(&call, 0, weight),
                                      _at(&call, 1, bias))
        _check(status)
    finally:
        _close(&call)
    return y


def fast_train_backward(dy, x, count, mean, m2, weight, axis, eps, out, int n_threads, bias=None, activation=None,
                        slope=0.0, residual=None, dresidual=None):
    """batch_norm_train_backward as (dx, dweight, dbias), or None where an argument is not canonical."""
    cdef Call call
    cdef bncore_status status
    cdef cnp.ndarray dx, sum_dy, sum_dy_xhat
    cdef int64_t c
    cdef double *var
    if not _open(&call, x, axis, eps, n_threads):
        return None
    cdef int64_t n = call.problem.outer * call.problem.inner
    try:
        if (not _plain(dy) or not _same_place(<cnp.ndarray>dy, <cnp.ndarray>x) or count != n or mean is None
                or m2 is None or not _output_fits(out, <cnp.ndarray>x, dy) or not _parameter(&call, 0, weight, out)
                or not _parameter(&call, 1, mean, out) or not _parameter(&call, 2, m2, out)
                or not _parameter(&call, 3, bias, out)
                or not _fusion(&call, activation, slope, residual, <cnp.ndarray>x, out)
                or not _residual_gradient(&call, dresidual, <cnp.ndarray>x, dy, residual, out)
                or not _parameters_apart(dresidual, weight, bias)):
            return None
        call.fusion.bias = _at(&call, 3, bias)
        var = call.parameters + 2 * call.problem.channels
        for c in range(call.problem.channels):
            var[c] = var[c] / <double>n
        dx = _output(&call, out, <cnp.ndarray>x)
        sum_dy, sum_dy_xhat = _per_channel(&call), _per_channel(&call)
        with nogil:
            status = bncore_train_backward(&call.problem, cnp.PyArray_DATA(dx), _doubles(sum_dy),
                                           _doubles(sum_dy_xhat), cnp.PyArray_DATA(<cnp.ndarray>dy),
                                           cnp.PyArray_DATA(<cnp.ndarray>x), _at(&call, 1, mean), var,
                                           _at(&call, 0, weight))
        _check(status)
    finally:
        _close(&call)
    cdef int kind = cnp.PyArray_TYPE(<cnp.ndarray>x if weight is None else <cnp.ndarray>weight)
    if kind == cnp.NPY_DOUBLE:
        return dx, sum_dy_xhat, sum_dy
    return dx, _as_float32(sum_dy_xhat), _as_float32(sum_dy)


cdef inline bint _running(object a_, cnp.npy_intp channels) noexcept:
    """Whether a (C,) array of running statistics can be moved in place as it is."""
    if not _plain(a_):
        return False
    cdef cnp.ndarray a = <cnp.ndarray>a_
    cdef int kind = cnp.PyArray_TYPE(a)
    return ((kind == cnp.NPY_FLOAT or kind == cnp.NPY_DOUBLE) and cnp.PyArray_ISWRITEABLE(a)
            and cnp.PyArray_IS_C_CONTIGUOUS(a) and cnp.PyArray_NDIM(a) == 1 and cnp.PyArray_DIM(a, 0) == channels)


cdef inline void _move(cnp.ndarray running, const double *batch, double divisor, double momentum) noexcept nogil:
    """running = (1 - momentum) * running + momentum * batch / divisor, in float64, rounded once."""
    cdef cnp.npy_intp c, channels = cnp.PyArray_DIM(running, 0)
    cdef float *f = <float *>cnp.PyArray_DATA(running)
    cdef double *d = <double *>cnp.PyArray_DATA(running)
    cdef double keep = 1.0 - momentum
    if cnp.PyArray_TYPE(running) == cnp.NPY_FLOAT:
        for c in range(channels):
            f[c] = <float>(keep * <double>f[c] + momentum * (batch[c] / divisor))
    else:
        for c in range(channels):
            d[c] = keep * d[c] + momentum * (batch[c] / divisor)


def fast_move_running(running_mean, running_var, int64_t count, cnp.ndarray mean, cnp.ndarray m2, double momentum):
    """Move running statistics towards those of moments, count >= 1; False where one is not canonical."""
    cdef cnp.npy_intp channels = cnp.PyArray_DIM(mean, 0)
    if not (_running(running_mean, channels) and _running(running_var, channels)
            and cnp.PyArray_IS_C_CONTIGUOUS(mean) and cnp.PyArray_IS_C_CONTIGUOUS(m2)
            and _apart(<cnp.ndarray>running_mean, running_var)):
        return False
    _move(<cnp.ndarray>running_mean, <double *>cnp.PyArray_DATA(mean), 1.0, momentum)
    _move(<cnp.ndarray>running_var, <double *>cnp.PyArray_DATA(m2), <double>(count - 1), momentum)
    return True
