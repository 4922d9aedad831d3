"""Where a model in training lies: whole on every process, or in parts; and how that is written and read."""
