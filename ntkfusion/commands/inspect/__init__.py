"""``ntkfusion inspect``."""
