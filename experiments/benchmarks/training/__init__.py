"""Updates of MiniLM with two classes against transformers' PyTorch class: tokens/s, interleaved in one run, and memory.

Run it: ``NTKFUSION_DATA_DIR=DATA uv run --extra demo --extra oracle experiments/benchmarks/training`` (Linux; without
the data the packaged sentences are used). Both sides do the same updates: the batches of `fit` in its padded lengths,
forward pass with dropout, backward pass, clipping, AdamW with decay on matrices; the same number of threads. PyTorch
runs in train mode with its default attention and two AdamWs (fused, foreach). The process keeps freed memory, as
`ntkfusion finetune` does, which serves both sides; ``--default-allocator`` leaves glibc as it is. The first update of
each padded length, which compiles, is not counted. Memory is the peak of a process of its own, above what its imports
hold.
"""
