"""The verbs of the command line: arguments in, text out."""
