"""InternVL as its own code trains it: text, tiles, and checkpoints in the form of its publishers."""
