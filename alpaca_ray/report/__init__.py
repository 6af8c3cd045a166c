"""What came of a run: plots and self-contained pages."""
