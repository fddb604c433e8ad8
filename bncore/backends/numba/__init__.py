"""The algorithm in plain loops, and the backend that Numba makes of it (`jit`)."""
