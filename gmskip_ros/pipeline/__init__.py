"""A frame's way without ROS: gate, worker, pixels, both branches, comparison, records."""
