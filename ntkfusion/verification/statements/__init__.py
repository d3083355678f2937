"""The statements of docs/theory.md as checks: one module each, listed in `ntkfusion.verification.registry`."""
