"""Training: pure encoding and planning, model building, the per-worker loop, and its wiring to Ray Train."""
