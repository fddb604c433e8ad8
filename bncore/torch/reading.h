/* Arguments as Python gives them. */
#ifndef BNCORE_TORCH_READING_H
#define BNCORE_TORCH_READING_H

#include <Python.h>

#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/python_variable.h>

#include "call.h"

namespace
{

/* Take an argument; false where it is of another type. */
bool read(PyObject *object, Optional &to)
{
    if (object == Py_None) return true;
    if (!THPVariable_CheckExact(object)) return false;
    to = THPVariable_Unpack(object);
    return !torch::autograd::isFwGradDefined(to);
}

bool read(PyObject *object, double &to)
{
    if (!PyFloat_CheckExact(object) && !PyLong_CheckExact(object)) return false;
    to = PyFloat_AsDouble(object);
    if (!PyErr_Occurred()) return true;
    PyErr_Clear(); /* an int that no double has */
    return false;
}

bool read(PyObject *object, bool &to)
{
    to = object == Py_True;
    return PyBool_Check(object);
}

bool read(PyObject *object, int64_t &to)
{
    if (!PyLong_CheckExact(object)) return false;
    to = PyLong_AsLongLong(object);
    if (!PyErr_Occurred()) return true;
    PyErr_Clear();
    return false;
}

} // namespace

#endif
