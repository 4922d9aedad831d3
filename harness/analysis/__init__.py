"""Numbers from records: runs, arms, seeds, intervals, time to target, the paper's numbers, choices replayed."""
