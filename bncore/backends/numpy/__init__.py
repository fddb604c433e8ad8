"""The backend in NumPy."""
