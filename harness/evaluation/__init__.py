"""Checkpoints to scores: tasks, the lmms-eval child process, judging, results."""
