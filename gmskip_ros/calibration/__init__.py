"""The search for blocks to leave out, and what skip sets do on other pictures."""
