"""Single weight matrices: how they are coded."""
