"""Launch dual_vlm on a camera topic.

ros2 launch gmskip_ros dual_vlm.launch.py input_image:=/sensing/camera/camera0/image_rect_color
"""

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


def launch_setup(context):
    parameters = [LaunchConfiguration('param_file').perform(context)]
    for name, (value_type, _) in OVERRIDES.items():
        value = LaunchConfiguration(name)
        if value.perform(context):
            # Typed, so that YAML does not read a model named `on` as a boolean.
            parameters.append({name: ParameterValue(value, value_type=value_type)})
    return [
        Node(
            package='gmskip_ros',
            executable='dual_vlm_node',
            name='dual_vlm',
            namespace=LaunchConfiguration('namespace').perform(context),
            parameters=parameters,
            # The node derives the compressed topic from the remapped name.
            remappings=[('~/input/image', LaunchConfiguration('input_image').perform(context))],
            output='screen',
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
