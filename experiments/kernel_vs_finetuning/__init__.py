"""Does the kernel tell the truth? Measures taken before training against scores after it.

Every method at every width compresses a pretrained model; errors of outputs and kernels are measured, then the model
is fine-tuned. Rank correlations say which measure orders the methods as their scores do. Beside that: training of the
model linearised at its start, which is what its tangent kernel predicts, against real training.

Run it: ``uv run experiments/kernel_vs_finetuning`` (many hours on two cores; ``--tasks sst2 --seeds 0 --max-train 640
--methods none svd random-neurons --widths 0.5 --linearised none`` some minutes). Tasks: ``$NTKFUSION_DATA_DIR``, else
the hub. It can be stopped and started again: what is in the output folder is not computed twice.
"""
