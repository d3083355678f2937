"""The parts of ``kernel_distance.py`` beside this folder: text, measurements that can be resumed, tables, figures."""
