"""What every room uses: errors, exit codes, progress, files and signals. Nothing of the field."""
