"""Timings: one package per benchmark."""
