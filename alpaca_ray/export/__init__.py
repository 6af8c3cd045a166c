"""From what training wrote to what other programs read: merged checkpoints, Meta's layout, differences, Ollama."""
