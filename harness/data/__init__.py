"""Samples and batches: annotation formats, sources, order; `loading` decodes, `shapes` renders."""
