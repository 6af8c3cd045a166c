"""Which instructions are new: exact ROUGE-L against everything kept so far. Knows no Ray."""
