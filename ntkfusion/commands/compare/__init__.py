"""``ntkfusion compare``."""
