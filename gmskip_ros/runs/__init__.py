"""Runs that take a while and leave a folder: replay, demo, soak."""
