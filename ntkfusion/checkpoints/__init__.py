"""Checkpoints: find them, read them, and account for every tensor in them. Never pickle, never remote code."""
