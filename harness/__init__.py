"""The harness: recipes in, records and tables out. See `harness --help`."""
