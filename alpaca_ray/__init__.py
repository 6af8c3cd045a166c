"""Stanford Alpaca and Alpaca-LoRA as one engine on Ray: generate, train, serve."""

__version__ = "0.1.0"
