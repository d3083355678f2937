"""A package, so that no distribution's package `tests` in the environment is taken for this one."""
