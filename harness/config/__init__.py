"""What is asked: recipes, suites and evaluations as frozen models, read from YAML with positions."""
