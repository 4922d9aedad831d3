"""What happened: ledger, totals, record, provenance, and the MLflow mirror."""
