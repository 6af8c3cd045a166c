"""Every setting that a user can give. Nothing here imports ray, torch or transformers."""
