"""Single numbers and single items of finished runs: where they come from, and what is answered when they are asked
again."""
