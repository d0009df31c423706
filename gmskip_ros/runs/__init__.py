"""What takes a while and leaves a folder: replay, demo, soak."""
