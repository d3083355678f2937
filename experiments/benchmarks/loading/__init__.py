"""Memory and time of loading checkpoints of the size of BERT-large, which are generated.

Run it: ``uv run experiments/benchmarks/loading`` (five minutes, 5 GB of disk, Linux). Every load runs in a process
of its own, after whose imports the system's record of its peak is reset. Prints a table.
"""
