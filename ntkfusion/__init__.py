"""Exact neural tangent kernels of compressed language models.

>>> import ntkfusion as nf
>>> nf.MLPFusion(keep_ratio=0.25).keep_ratio
0.25

The public names stand in ``__init__.pyi``, once; they are imported when they are first used, so that the command line
can answer ``--help`` without loading JAX.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
