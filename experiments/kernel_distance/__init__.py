"""How far every method leaves outputs and kernels from the original's, on SST-2 text.

Sections: every block; whole networks; overfitting to calibration tokens; one set of constants for both kernels.

Run it: ``uv run experiments/kernel_distance`` (an hour on two cores; ``--sections blocks --seeds 0 --methods svd
mlp-fusion`` a minute). Text: ``$NTKFUSION_DATA_DIR/sst2/{train,dev}.tsv``, or the packaged sentences without that
variable. It can be stopped and started again: what is in the output folder is not computed twice.
"""
