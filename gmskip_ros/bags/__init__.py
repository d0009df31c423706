"""Camera frames of rosbag2 recordings, without ROS; what is cut off is read as far as it goes."""
