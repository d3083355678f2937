"""Time and memory of the exact kernels against neural-tangents, dense Jacobians and the machine's matmul rate.

Run it: ``uv run --extra test experiments/benchmarks/kernels`` (an hour on two cores, ``--sections block tokens``
minutes; Linux, whose /proc it reads). Every contestant runs in a process of its own, by turns with the others,
within the same memory and time; who exceeds them is a row that says so. Writes results.json, table.md and growth.png.
"""
