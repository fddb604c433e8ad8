"""Programs that use the library: the benchmark, the demo and the study."""
