"""Engines: token generation on one node, with no knowledge of Ray or HTTP."""
