"""How far two kernels are from each other."""
