"""Will this machine run it? Checks of the set-up, ROS and the model."""
