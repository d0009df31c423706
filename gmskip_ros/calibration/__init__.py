"""The search for blocks to leave out (nothing here yet)."""
