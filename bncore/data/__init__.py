"""Statistics of data that arrive in pieces: micro-batches, streams and whole data sets."""
