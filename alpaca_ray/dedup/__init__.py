"""Deduplication of existing files: the novelty filter over a stream of records."""
