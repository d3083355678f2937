"""Offline autoencoder: rows of weight matrices as latents and a small decoder."""
