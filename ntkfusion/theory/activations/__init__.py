"""Bounds on the derivatives of activations, with proofs."""
