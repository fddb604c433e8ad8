# Objects that all threads use in every call. binding.pyx includes this file.
#
# A free-threaded Python counts the references to an object of another thread atomically. With a few such counts in a
# short call, two threads together make only 1.4 times as many calls as one. Python itself leaves out the counts of
# modules, classes and functions written in Python. benchmarks/free_threads.py measures it.

cdef extern from *:
    """
    static void leave_uncounted(PyObject *object)
    {
    #ifndef Py_GIL_DISABLED
        (void)object;
    #elif PY_VERSION_HEX >= 0x030E0000
        (void)PyUnstable_Object_EnableDeferredRefcount(object);
    #else /* CPython 3.13 has no function for it; this is what it does to its own objects */
        if (PyObject_GC_IsTracked(object)) PyObject_GC_UnTrack(object);
        object->ob_tid = _Py_UNOWNED_TID;
        object->ob_ref_local = _Py_IMMORTAL_REFCNT_LOCAL;
        object->ob_ref_shared = 0;
    #endif
    }
    """
    void leave_uncounted(object)


def share(one):
    """Leave out the counts of references to an object that no other thread has yet, and that is never freed."""
    leave_uncounted(one)


def _share_functions():
    for each in list(globals().values()):
        if type(each) is type(share):
            leave_uncounted(each)


_share_functions()
