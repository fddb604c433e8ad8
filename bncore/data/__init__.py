"""Statistics of data that arrive in pieces: micro-batches, streams, whole data sets."""
