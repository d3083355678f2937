"""Parts of `bound_tightness.py`."""
