"""``ntkfusion compress``."""
