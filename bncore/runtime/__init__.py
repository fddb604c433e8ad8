"""What a call runs on: threads, the pool of output buffers, and the configuration that is shown."""
