"""The runtime of all calls: threads, the pool of output buffers, and `show_config`."""
