"""What no package owns: pytrees and parameter paths, memory, devices, files, digests, progress."""
