"""The MLP block in all its forms."""
