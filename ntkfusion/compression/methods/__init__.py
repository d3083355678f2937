"""The methods of compression, one module each."""
