"""Switch Transformer."""
