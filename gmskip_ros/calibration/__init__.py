"""The search for blocks to skip, and how skip sets do on held-out images."""
