# cython: language_level=3, freethreading_compatible=True, boundscheck=False, wraparound=False, cdivision=True
# cython: embedsignature=False
"""The C core as a backend: the functions of `contract.py`, and the fast path.

The contract's functions take canonical arrays, release the GIL and pass the pointers to the C core. The functions of
the fast path take a caller's own arguments; they are in the files fast_*.pxi.
"""

import os

cimport numpy as cnp
from cpython.pycapsule cimport PyCapsule_GetName, PyCapsule_GetPointer

cnp.import_array()

name = "native"

include "c_functions.pxi"


cdef int _check(bncore_status status) except -1:
    if status == BNCORE_ERROR_MEMORY:
        raise MemoryError(bncore_status_string(status).decode())
    if status != BNCORE_OK:
        raise RuntimeError(bncore_status_string(status).decode())
    return 0


def capsules():
    """Return a capsule for each C function, by the function's name; the capsule's own name is the C type."""
    return dict(globals()["__pyx_capi__"])


def address(capsule):
    """Return the address of the function in one of these capsules."""
    return <size_t>PyCapsule_GetPointer(capsule, PyCapsule_GetName(capsule))


# ---- status codes ----

cdef extern from *:
    """
    typedef struct status_entry { const char *name; int number; const char *text; } status_entry;
    #define STATUS_ENTRY(name, number, text) {#name, number, text},
    static const status_entry status_entries[] = { BNCORE_STATUS_LIST(STATUS_ENTRY) };
    enum { STATUS_COUNT = sizeof status_entries / sizeof status_entries[0] };
    """
    ctypedef struct status_entry:
        const char *name
        int number
        const char *text
    const status_entry status_entries[]
    const int STATUS_COUNT


def statuses():
    """Return the number and the text of each status code of bncore.h, by its name."""
    return {status_entries[i].name.decode(): (status_entries[i].number, status_entries[i].text.decode())
            for i in range(STATUS_COUNT)}


# ---- the instruction set ----

def isa():
    return bncore_isa().decode()


def available_isas():
    names = []
    while bncore_isa_available(<int>len(names)) != NULL:
        names.append(bncore_isa_available(<int>len(names)).decode())
    return tuple(names)


def set_isa(isa_name):
    """Choose the kernels by name, or the best with "". Do not call it while another thread computes."""
    if bncore_isa_set(str(isa_name).encode()) != BNCORE_OK:
        raise ValueError(
            f"isa: expected one of {', '.join(available_isas())} on this processor, got {isa_name!r}"
        )


if bncore_isa_init() != BNCORE_OK:
    raise ImportError(
        f"BNCORE_ISA: expected one of {', '.join(available_isas())} on this processor, "
        f"got {os.environ.get('BNCORE_ISA')!r}"
    )


# ---- the executor ----

def executor():
    """Return the name of the default executor."""
    return bncore_executor_name().decode()


def available_executors():
    names = []
    while bncore_executor_available(<int>len(names)) != NULL:
        names.append(bncore_executor_available(<int>len(names)).decode())
    return tuple(names)


def set_executor(executor_name):
    """Choose the default executor by name, or the first available one with ""."""
    if bncore_executor_choose(str(executor_name).encode()) != BNCORE_OK:
        raise ValueError(
            f"executor: expected one of {', '.join(available_executors())}, got {executor_name!r}"
        )


if bncore_executor_init() != BNCORE_OK:
    raise ImportError(
        f"BNCORE_EXECUTOR: expected one of {', '.join(available_executors())}, "
        f"got {os.environ.get('BNCORE_EXECUTOR')!r}"
    )


def workers():
    """Return the number of worker threads that the library has created."""
    return bncore_workers()


def max_threads():
    """Return the largest number of threads that the default executor uses for a call; 0 means no limit."""
    return bncore_max_threads()


def set_max_threads(int threads):
    """Limit the threads of the default executor; 0 removes the limit."""
    if bncore_max_threads_set(threads) != BNCORE_OK:
        raise ValueError(f"threads: expected an integer >= 0, got {threads}")


def has_openmp():
    return bool(bncore_has_openmp())


def omp_max_threads():
    return bncore_openmp_max_threads()


def in_forked_child():
    return bool(bncore_in_forked_child())


# ---- the contract ----

cdef extern from "numpy/arrayobject.h":
    const int NPY_HALF
    const int NPY_USERDEF


cdef inline double *_doubles(cnp.ndarray array) noexcept nogil:
    return NULL if array is None else <double *>cnp.PyArray_DATA(array)


cdef bncore_problem _problem(cnp.ndarray x, double eps, int n_threads, int first=0) noexcept:
    """Return the problem of x, or (first=1) that of one of its samples, which lie along the first axis."""
    cdef bncore_problem p
    cdef cnp.npy_intp *shape = cnp.PyArray_DIMS(x) + first
    cdef int number = cnp.PyArray_TYPE(x)
    cdef bncore_dtype dtype = BNCORE_FLOAT64
    if number == cnp.NPY_FLOAT:
        dtype = BNCORE_FLOAT32
    elif number == NPY_HALF:
        dtype = BNCORE_FLOAT16
    elif number == cnp.NPY_USHORT:
        dtype = BNCORE_BFLOAT16
    bncore_problem_init(&p, sizeof(bncore_problem), dtype, shape[0], shape[1], shape[2])
    p.eps = eps
    p.n_threads = n_threads
    return p


cdef inline void *_data(object array) noexcept:
    return NULL if array is None else cnp.PyArray_DATA(<cnp.ndarray>array)


cdef inline int32_t _activation(object activation) noexcept:
    """Return the activation of bncore.h that has this name, or -1 if there is none."""
    if activation is None:
        return BNCORE_NO_ACTIVATION
    if type(activation) is not str:
        return -1
    if activation == "relu":
        return BNCORE_RELU
    return BNCORE_LEAKY_RELU if activation == "leaky_relu" else -1


cdef _fuse(bncore_problem *p, bncore_fusion *f, object fusion):
    """Write a Fusion of contract.py to p; the caller must keep its arrays alive."""
    if fusion is None:
        return
    bncore_fusion_init(f, sizeof(bncore_fusion))
    f.activation = _activation(fusion.activation)
    f.slope = fusion.slope
    f.residual = _data(fusion.residual)
    f.dresidual = _data(fusion.dresidual)
    f.bias = <const double *>_data(fusion.bias)
    p.fusion = f


cdef _weigh(bncore_problem *p, bncore_weights *w, cnp.ndarray x, object weights):
    """Write a Weights of contract.py to p; the caller must keep its arrays alive."""
    if weights is None:
        return
    bncore_weights_init(w, sizeof(bncore_weights))
    cdef object values = weights.values, fill = weights.fill
    if values is not None:
        w.dtype = BNCORE_WEIGHT_UINT8 if cnp.PyArray_TYPE(values) == cnp.NPY_UBYTE else BNCORE_WEIGHT_FLOAT64
        w.per_channel = cnp.PyArray_DIM(values, 1) == cnp.PyArray_DIM(x, 1)
        w.values = _data(values)
    w.omit_nan = bool(weights.omit_nan)
    if fill is not None:
        w.filled, w.fill = True, fill
    w.count = <double *>_data(weights.count)
    p.weights = w


def moments(cnp.ndarray mean, cnp.ndarray m2, cnp.ndarray x, int n_threads, bint float64_sums=False,
            weights=None):
    cdef bncore_problem p = _problem(x, 0.0, n_threads)
    p.flags = BNCORE_FLOAT64_SUMS if float64_sums else 0
    cdef bncore_weights w
    cdef bncore_status status
    _weigh(&p, &w, x, weights)
    with nogil:
        status = bncore_moments(&p, _doubles(mean), _doubles(m2), cnp.PyArray_DATA(x))
    _check(status)


def normalize(cnp.ndarray y, cnp.ndarray x, cnp.ndarray mean, cnp.ndarray var, cnp.ndarray weight,
              cnp.ndarray bias, double eps, int n_threads, fusion=None,
              weights=None):
    cdef bncore_problem p = _problem(x, eps, n_threads)
    cdef bncore_fusion f
    cdef bncore_weights w
    cdef bncore_status status
    _fuse(&p, &f, fusion)
    _weigh(&p, &w, x, weights)
    with nogil:
        status = bncore_normalize(&p, cnp.PyArray_DATA(y), cnp.PyArray_DATA(x), _doubles(mean), _doubles(var),
                                  _doubles(weight), _doubles(bias))
    _check(status)


def train(cnp.ndarray y, cnp.ndarray mean, cnp.ndarray m2, cnp.ndarray x, cnp.ndarray weight,
          cnp.ndarray bias, double eps, int n_threads, fusion=None,
          weights=None):
    cdef bncore_problem p = _problem(x, eps, n_threads)
    cdef bncore_fusion f
    cdef bncore_weights w
    cdef bncore_status status
    _fuse(&p, &f, fusion)
    _weigh(&p, &w, x, weights)
    with nogil:
        status = bncore_train(&p, cnp.PyArray_DATA(y), _doubles(mean), _doubles(m2), cnp.PyArray_DATA(x),
                              _doubles(weight), _doubles(bias))
    _check(status)


def grad_sums(cnp.ndarray sum_dy, cnp.ndarray sum_dy_xhat, cnp.ndarray dy, cnp.ndarray x, cnp.ndarray mean,
              cnp.ndarray var, double eps, int n_threads, weights=None):
    cdef bncore_problem p = _problem(x, eps, n_threads)
    cdef bncore_weights w
    cdef bncore_status status
    _weigh(&p, &w, x, weights)
    with nogil:
        status = bncore_grad_sums(&p, _doubles(sum_dy), _doubles(sum_dy_xhat), cnp.PyArray_DATA(dy),
                                  cnp.PyArray_DATA(x), _doubles(mean), _doubles(var))
    _check(status)


def grad_input(cnp.ndarray dx, cnp.ndarray dy, cnp.ndarray x, cnp.ndarray mean, cnp.ndarray var,
               cnp.ndarray sum_dy, cnp.ndarray sum_dy_xhat, cnp.ndarray count, cnp.ndarray weight, double eps,
               int n_threads, weights=None):
    cdef bncore_problem p = _problem(x, eps, n_threads)
    cdef bncore_weights w
    cdef bncore_status status
    _weigh(&p, &w, x, weights)
    with nogil:
        status = bncore_grad_input(&p, cnp.PyArray_DATA(dx), cnp.PyArray_DATA(dy), cnp.PyArray_DATA(x),
                                   _doubles(mean), _doubles(var), _doubles(sum_dy), _doubles(sum_dy_xhat),
                                   _doubles(count), _doubles(weight))
    _check(status)


def train_backward(cnp.ndarray dx, cnp.ndarray sum_dy, cnp.ndarray sum_dy_xhat, cnp.ndarray dy, cnp.ndarray x,
                   cnp.ndarray mean, cnp.ndarray var, cnp.ndarray weight, double eps, int n_threads, fusion=None,
                   weights=None):
    cdef bncore_problem p = _problem(x, eps, n_threads)
    cdef bncore_fusion f
    cdef bncore_weights w
    cdef bncore_status status
    _fuse(&p, &f, fusion)
    _weigh(&p, &w, x, weights)
    with nogil:
        status = bncore_train_backward(&p, cnp.PyArray_DATA(dx), _doubles(sum_dy), _doubles(sum_dy_xhat),
                                       cnp.PyArray_DATA(dy), cnp.PyArray_DATA(x), _doubles(mean), _doubles(var),
                                       _doubles(weight))
    _check(status)


def infer_backward(cnp.ndarray dx, cnp.ndarray sum_dy, cnp.ndarray sum_dy_xhat, cnp.ndarray dy, cnp.ndarray x,
                   cnp.ndarray mean, cnp.ndarray var, cnp.ndarray weight, double eps, int n_threads, fusion=None,
                   weights=None):
    cdef bncore_problem p = _problem(x, eps, n_threads)
    cdef bncore_fusion f
    cdef bncore_weights w
    cdef bncore_status status
    _fuse(&p, &f, fusion)
    _weigh(&p, &w, x, weights)
    with nogil:
        status = bncore_infer_backward(&p, cnp.PyArray_DATA(dx), _doubles(sum_dy), _doubles(sum_dy_xhat),
                                       cnp.PyArray_DATA(dy), cnp.PyArray_DATA(x), _doubles(mean), _doubles(var),
                                       _doubles(weight))
    _check(status)


def group_norm(cnp.ndarray y, cnp.ndarray mean, cnp.ndarray m2, cnp.ndarray x, cnp.ndarray weight, cnp.ndarray bias,
               int64_t groups, double eps, int n_threads):
    cdef bncore_problem p = _problem(x, eps, n_threads, 1)
    cdef bncore_status status
    with nogil:
        status = bncore_group_norm(&p, cnp.PyArray_DIM(x, 0), groups, cnp.PyArray_DATA(y), _doubles(mean), _doubles(m2),
                                   cnp.PyArray_DATA(x), _doubles(weight), _doubles(bias))
    _check(status)


def group_norm_backward(cnp.ndarray dx, cnp.ndarray sum_dy, cnp.ndarray sum_dy_xhat, cnp.ndarray dy, cnp.ndarray x,
                        cnp.ndarray mean, cnp.ndarray var, cnp.ndarray weight, int64_t groups, double eps,
                        int n_threads):
    cdef bncore_problem p = _problem(x, eps, n_threads, 1)
    cdef bncore_status status
    with nogil:
        status = bncore_group_norm_backward(&p, cnp.PyArray_DIM(x, 0), groups, cnp.PyArray_DATA(dx), _doubles(sum_dy),
                                            _doubles(sum_dy_xhat), cnp.PyArray_DATA(dy), cnp.PyArray_DATA(x),
                                            _doubles(mean), _doubles(var), _doubles(weight))
    _check(status)


cdef bncore_problem _integers(cnp.ndarray x, double eps, int n_threads) noexcept:
    cdef bncore_problem p
    cdef cnp.npy_intp *shape = cnp.PyArray_DIMS(x)
    cdef int item = cnp.PyArray_ITEMSIZE(x), dtype = BNCORE_UINT8
    if item > 1:
        dtype = BNCORE_UINT16 if item == 2 else BNCORE_UINT32
    if cnp.PyArray_ISSIGNED(x):
        dtype += BNCORE_INT8 - BNCORE_UINT8
    bncore_problem_init(&p, sizeof(bncore_problem), <bncore_dtype>dtype, shape[0], shape[1], shape[2])
    p.eps = eps
    p.n_threads = n_threads
    return p


def integer_moments(cnp.ndarray mean, cnp.ndarray m2, cnp.ndarray x, int n_threads):
    cdef bncore_problem p = _integers(x, 0.0, n_threads)
    cdef bncore_status status
    with nogil:
        status = bncore_moments(&p, _doubles(mean), _doubles(m2), cnp.PyArray_DATA(x))
    _check(status)


def integer_normalize(cnp.ndarray y, cnp.ndarray x, cnp.ndarray mean, cnp.ndarray var, cnp.ndarray weight,
                      cnp.ndarray bias, double eps, int n_threads, fusion=None):
    cdef bncore_problem p = _integers(x, eps, n_threads)
    cdef bncore_fusion f
    cdef bncore_status status
    _fuse(&p, &f, fusion)
    with nogil:
        status = bncore_normalize(&p, cnp.PyArray_DATA(y), cnp.PyArray_DATA(x), _doubles(mean), _doubles(var),
                                  _doubles(weight), _doubles(bias))
    _check(status)


# ---- the fast path ----

include "fast_convert.pxi"
include "fast_arguments.pxi"
include "fast_calls.pxi"
include "fast_steps.pxi"
include "fast_running.pxi"
include "shared_objects.pxi"
