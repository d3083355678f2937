"""How far bounds lie above what they bound: output and SGD kernel of MLP Fusion (V4) against real original blocks.

For every layer and width, bound / measured of the plain bounds (`theory.blocks.output_bounds`, `sgd_bounds`) and of
those that evaluate leading directions (`theory.enclosures`), by the share that is evaluated.

Run it: ``uv run experiments/bound_tightness`` (MiniLM, 6 layers, two widths: some minutes on two cores; ``--layers 0
--widths 0.25`` one). Text: ``$NTKFUSION_DATA_DIR/sst2/{train,dev}.tsv``, or the packaged sentences without that
variable. ``--bert-tiny`` takes ``$NTKFUSION_DATA_DIR/bert_tiny_sst2/layers.npz``, whose blocks get Gaussian vectors
through the LayerNorm in front of them (the file has no embeddings). It can be stopped and started again: finished
layers are kept in the output folder.
"""
