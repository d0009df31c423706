"""One file per method of choosing the blocks to skip."""
