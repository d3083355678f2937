"""``ntkfusion convert``."""
