"""The offline autoencoder."""
