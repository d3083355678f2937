"""Models: MLP blocks as plain pytrees, and Flax modules of the networks that contain them."""
