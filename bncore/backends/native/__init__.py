"""The native backend: the binding to the C library, and the fast path."""
