"""Launch dual_vlm on a camera topic.

ros2 launch gmskip_ros dual_vlm.launch.py input_image:=/sensing/camera/camera0/image_rect_color
"""

import os

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

# If empty, the value of the parameter file is used.
OVERRIDES = {
    'model': (str, 'demo, a folder in Hugging Face format, or a hub id'),
    'device': (str, 'auto, cpu, cuda or cuda:N'),
    'image_transport': (str, 'raw, or compressed: then <input_image>/compressed is subscribed to'),
    'use_sim_time': (bool, 'true while a bag is played with --clock'),
}

LOG_LEVELS = ('debug', 'info', 'warn', 'error', 'fatal')


def respawn_of(context):
    """Return the respawn arguments of Node; Humble takes no substitution for the delay."""
    respawn = LaunchConfiguration('respawn').perform(context)
    if respawn.lower() not in ('true', 'false'):
        raise ValueError(f"respawn: '{respawn}' is not true or false")
    delay = LaunchConfiguration('respawn_delay').perform(context)
    try:
        seconds = float(delay)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float('inf'):
        raise ValueError(f"respawn_delay: '{delay}' is not a number of seconds, 0 or more")
    return {'respawn': respawn.lower() == 'true', 'respawn_delay': seconds}


def launch_setup(context):
    param_file = LaunchConfiguration('param_file').perform(context)
    # launch_ros itself starts the node without it.
    if not os.path.isfile(param_file):
        raise FileNotFoundError(f"param_file: '{param_file}' is not a file")
    parameters = [param_file]
    for name, (value_type, _) in OVERRIDES.items():
        value = LaunchConfiguration(name)
        if value.perform(context):
            # Typed, so that YAML does not read a model named `on` as a boolean.
            parameters.append({name: ParameterValue(value, value_type=value_type)})
    log_level = LaunchConfiguration('log_level').perform(context)
    if log_level.lower() not in LOG_LEVELS:
        raise ValueError(f"log_level: '{log_level}' is not one of {', '.join(LOG_LEVELS)}")
    return [
        Node(
            package='gmskip_ros',
            executable='dual_vlm_node',
            name='dual_vlm',
            namespace=LaunchConfiguration('namespace').perform(context),
            parameters=parameters,
            # The node derives the compressed topic from the remapped name.
            remappings=[('~/input/image', LaunchConfiguration('input_image').perform(context))],
            ros_arguments=['--log-level', log_level],
            output='screen',
            **respawn_of(context),
        )
    ]


def generate_launch_description():
    param_file = PathJoinSubstitution(
        [FindPackageShare('gmskip_ros'), 'config', 'dual_vlm.param.yaml']
    )
    return LaunchDescription(
        [
            DeclareLaunchArgument(
                'input_image',
                default_value='/sensing/camera/camera0/image_rect_color',
                description='camera topic, without /compressed',
            ),
            DeclareLaunchArgument(
                'param_file', default_value=param_file, description='parameters of the node'
            ),
            DeclareLaunchArgument(
                'namespace', default_value='', description="the node's namespace"
            ),
            DeclareLaunchArgument(
                'respawn',
                default_value='false',
                description='true: start the node again whenever its process ends by itself',
            ),
            DeclareLaunchArgument(
                'respawn_delay', default_value='5.0', description='before that, s'
            ),
            DeclareLaunchArgument(
                'log_level', default_value='info', description=', '.join(LOG_LEVELS)
            ),
            *(
                DeclareLaunchArgument(
                    name,
                    default_value='',
                    description=f'{description} (default: the value in param_file)',
                )
                for name, (_, description) in OVERRIDES.items()
            ),
            OpaqueFunction(function=launch_setup),
        ]
    )
