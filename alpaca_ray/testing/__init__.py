"""What tests and benchmarks stand on: tiny random models, and a teacher that talks real HTTP."""
