"""The algorithm as plain loops (`specification.py`), and the backend that Numba makes of it.

Importing `specification` and `operations` needs no Numba; importing `jit` does.
"""
