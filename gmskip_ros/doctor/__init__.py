"""Checks whether this machine can run the node: setup, ROS, GPU and model."""
