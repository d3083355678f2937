"""Bounds on what fusing neurons does to a block: plain functions from blocks and inputs to arrays, in float64."""
