"""Keys of parameter files are matched as rclpy matches them, and misplaced files are recognised."""

from __future__ import annotations

from pathlib import Path

import pytest
import rclpy
from rclpy.node import Node

from gmskip_ros.ros import parameter_files
from gmskip_ros.ros.parameters import similar_name

KEYS = [
    '/**',
    '**',
    '*',
    '/*',
    'dual_vlm',
    '/dual_vlm',
    '/front/dual_vlm',
    'front/dual_vlm',
    '/*/dual_vlm',
    '*/dual_vlm',
    '/**/dual_vlm',
    '/front/*',
    '/front/**',
    '/**/front/dual_vlm',
    '/rear/dual_vlm',
    '/other',
]


@pytest.mark.parametrize('namespace', ['/', '/front', '/a/front'])
def test_keys_match_as_in_rclpy(tmp_path: Path, namespace: str) -> None:
    path = tmp_path / 'all.param.yaml'
    sections = [f"'{key}': {{ros__parameters: {{p{n}: 1}}}}" for n, key in enumerate(KEYS)]
    path.write_text('\n'.join(sections))
    context = rclpy.Context()
    arguments = ['--ros-args', '--params-file', str(path), '-r', f'__ns:={namespace}']
    rclpy.init(args=arguments, context=context)
    try:
        node = Node('dual_vlm', context=context)
        given = set(node._parameter_overrides)
        full_name = node.get_fully_qualified_name()
        node.destroy_node()
    finally:
        rclpy.shutdown(context=context)
    ours = {f'p{n}' for n, key in enumerate(KEYS) if parameter_files.matches(key, full_name)}
    assert ours == given and ours


def test_files_are_those_of_ros_arguments() -> None:
    arguments = ['node', '--params-file', 'no', '--ros-args', '--params-file', 'a', '-r', 'x:=y']
    arguments += ['--', '--params-file', 'no', '--ros-args', '--params-file', 'b']
    assert parameter_files.files_in(arguments) == ['a', 'b']
    assert parameter_files.files_in(()) == []


@pytest.mark.parametrize(
    ('content', 'words'),
    [
        ('/**: {ros__parameters: {rate_hz: 1.0}}', ''),
        ('/**: {ros__parameters: {use_sim_time: true}}', ''),
        ('camera: {ros__parameters: {device: /dev/video0, gain: 1, fps: 30}}', ''),
        (
            '/front/dual_vlm: {ros__parameters: {rate_hz: 1.0}}\n'
            'dual_vlm: {ros__parameters: {a: 1}}',
            '',
        ),
        ('front: {dual_vlm: {ros__parameters: {rate_hz: 1.0}}}', ''),
        (
            'dual_vlm: {ros__parameters: {rate_hz: 1.0}}',
            "its key 'dual_vlm' does not match /front/dual_vlm",
        ),
        ('a: {dual_vlm: {ros__parameters: {x: 1}}}', "its key 'a/dual_vlm'"),
        ('vlm: {ros__parameters: {skip_list: {captioning: auto}}}', "its key 'vlm'"),
        ('detector: {ros__parameters: {device: cuda:0}}', ''),
        ('dual_vlm: {ros__parameters: {}}', 'is empty'),
        ('', 'is empty'),
    ],
)
def test_misplaced_files(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / 'my.param.yaml'
    path.write_text(content)
    names = {'rate_hz', 'device', 'skip_list.captioning'}
    problem = parameter_files.misplaced(str(path), '/front/dual_vlm', names, {'dual_vlm'})
    assert words in problem and bool(problem) == bool(words)


def test_names_that_resemble_ours_and_those_of_vehicle_info() -> None:
    from gmskip_ros.pipeline.parameters import SPECS

    for name, ours in (
        ('rate_Hz', 'rate_hz'),
        ('max_frame_age_s', 'max_frame_age_sec'),
        ('max_new_tokens', 'max_new_tokens.single_object'),
    ):
        assert similar_name(name, SPECS) == ours
    for name in (
        'wheel_radius wheel_width wheel_base wheel_tread front_overhang rear_overhang '
        'left_overhang right_overhang vehicle_height max_steer_angle type device_id'
    ).split():
        assert similar_name(name, SPECS) == ''
