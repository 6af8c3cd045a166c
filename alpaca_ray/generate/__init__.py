"""From seed tasks to new instruction records: self-instruct against an OpenAI-compatible teacher."""
