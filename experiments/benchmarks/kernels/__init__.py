"""The parts of ``kernels.py`` beside this folder: contestants in processes of their own, and the tables they fill."""
