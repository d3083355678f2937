"""Texts that a decoder continues: greedy and beam search."""
