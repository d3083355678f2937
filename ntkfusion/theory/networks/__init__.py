"""From blocks to networks."""
