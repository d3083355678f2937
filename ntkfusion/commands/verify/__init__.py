"""``ntkfusion verify``."""
