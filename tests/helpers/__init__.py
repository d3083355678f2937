"""What tests share: small models, random blocks, oracles, ways to break files."""
