"""What PyTorch answered to the tests that compare with it, in small files; `make` writes them."""
