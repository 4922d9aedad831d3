"""What runs in the evaluation's child process, the only place that imports lmms-eval."""
