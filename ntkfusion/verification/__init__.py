"""What a statement, a control and a report are; the statements of the theory."""
