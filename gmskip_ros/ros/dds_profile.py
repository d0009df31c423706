"""Where the Fast DDS profile is, and the environment that makes a process use it."""

from __future__ import annotations

from importlib.resources import files


def fastdds_environment() -> dict[str, str]:
    """
    Return the environment variables with which raw images arrive between processes of one machine.

    They have to be set before a process calls `rclpy.init()`. What the profile does, and what it
    costs, is written in the profile (gmskip_ros/assets/fastdds_profile.xml).
    """
    return {
        'RMW_IMPLEMENTATION': 'rmw_fastrtps_cpp',
        'FASTRTPS_DEFAULT_PROFILES_FILE': str(files('gmskip_ros') / 'assets/fastdds_profile.xml'),
        'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST',
    }
