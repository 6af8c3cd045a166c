"""Serving: a base model and its LoRA adapters behind an OpenAI-compatible API."""
