"""Where the Fast DDS profile is, and the environment that makes a process use it."""

from __future__ import annotations

import os
from importlib.resources import files


def fastdds_environment() -> dict[str, str]:
    """Return the environment variables that make raw images arrive between local processes.

    Set them before a process calls `rclpy.init()`. The profile itself
    (gmskip_ros/assets/fastdds_profile.xml) describes what it does and costs.
    """
    # Humble does not support the discovery range. Its own variable is deprecated in later
    # distributions, where every process would warn about it.
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
