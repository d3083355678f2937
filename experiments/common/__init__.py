"""What several experiments share: stored results, tables, labels, console, figures and text."""
