"""Ways to make MLP blocks smaller, one module per method, under the contract of `ntkfusion.compression.contract`."""
