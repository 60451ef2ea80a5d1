"""Speculative decoding: a cheap draft guesses several tokens, one pass of the target says how many are right."""
