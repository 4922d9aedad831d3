"""What a gate chose: replayed from a finished run's stores, word by word."""
