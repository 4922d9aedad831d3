"""The paper: its numbers, what makes a run one of its rows, and our runs beside them."""
