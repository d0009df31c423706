"""Camera frames of rosbag2 recordings, without ROS, damaged ones as far as they are readable."""
