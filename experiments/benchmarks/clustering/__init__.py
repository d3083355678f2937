"""k-means of ntkfusion against scikit-learn: seconds and inertia, interleaved in one run.

Run it: ``uv run --extra test experiments/benchmarks/clustering``. Both sides get the same points, clusters, number
of restarts and cores; scikit-learn runs ``algorithm="lloyd"``. The first call of ours is shown apart: it compiles,
if no earlier row had problems of that shape.

Sections: ``layers`` are single blocks of MiniLM; ``all-layers`` all of its blocks in one call (ours) against one after
the other (theirs); ``base`` is a problem of BERT-base's size, 3072 neurons of 1537 numbers into 768 clusters, made of
random numbers: 64 common directions (36 % of the noise's variance), noise, and log-normal scales of the neurons.
"""
