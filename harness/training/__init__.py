"""One run's optimisation: teacher pass, gate stores, loop, checkpoint, parallelism, workers."""
