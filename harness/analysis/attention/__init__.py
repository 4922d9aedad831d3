"""Where trained models look: the attention of the places that write an answer, of a baseline and a gated run."""
