"""Training: what it does to a model, and how that is measured."""
