"""The backend in C: the binding to the C library and its fast path."""
