"""Where the Fast DDS profile is, and the environment that makes a process use it."""

from __future__ import annotations

import os
from importlib.resources import files


def fastdds_environment() -> dict[str, str]:
    """
    Return the environment variables with which raw images arrive between processes of one machine.

    They have to be set before a process calls `rclpy.init()`. What the profile does, and what it
    costs, is written in the profile (gmskip_ros/assets/fastdds_profile.xml).
    """
    # Humble does not know the discovery range. What it has is deprecated in later distributions,
    # where every process would warn of it.
    is_humble = os.environ.get('ROS_DISTRO') == 'humble'
    return {
        'RMW_IMPLEMENTATION': 'rmw_fastrtps_cpp',
        'FASTRTPS_DEFAULT_PROFILES_FILE': str(files('gmskip_ros') / 'assets/fastdds_profile.xml'),
        **(
            {'ROS_LOCALHOST_ONLY': '1'}
            if is_humble
            else {'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST'}
        ),
    }
