"""What a run survives, by the hundred: `pytest tests/soak --soak`, or `tox -e soak`; a few of each without it."""
