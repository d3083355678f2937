"""``ntkfusion kernel``."""
