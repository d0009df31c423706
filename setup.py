from glob import glob

from setuptools import find_packages, setup

package_name = 'gmskip_ros'

setup(
    name=package_name,
    version='0.1.0',
    description='LLaVA with and without skipped Transformer blocks, as a ROS 2 node',
    license='Apache-2.0',
    maintainer='gmskip_ros maintainers',
    maintainer_email='maintainers@gmskip-ros.example',
    python_requires='>=3.10',
    packages=find_packages(include=[package_name, package_name + '.*']),
    package_data={package_name: ['assets/*', 'assets/*/*', 'py.typed']},
    data_files=[
        ('share/ament_index/resource_index/packages', ['resource/' + package_name]),
        ('share/' + package_name, ['package.xml']),
        ('share/' + package_name + '/launch', glob('launch/*.launch.*')),
        ('share/' + package_name + '/config', glob('config/*')),
        ('share/' + package_name + '/schema', glob('schema/*.json')),
    ],
    zip_safe=False,
    # A vehicle brings its own NumPy, OpenCV and ROS, so nothing is pulled in by default.
    install_requires=['setuptools'],
    # The wheel environment of `make`; versions are pinned in constraints.txt.
    extras_require={
        'model': [
            'jinja2',
            'matplotlib',
            'numpy',
            'opencv-python-headless',
            'pillow>=10.1',
            'psutil',
            'pyyaml',
            'rich',
            'rosbags',
            'safetensors',
            'scipy',
            'tokenizers',
            'torch',
            'transformers',
        ],
        # Datasets of the Hugging Face hub.
        'parquet': ['pyarrow'],
        # For calibrate and compare --tensorboard.
        'tensorboard': ['tensorboard'],
        'ros': [
            'cv-bridge',
            'ros-jazzy-rclpy[fastrtps]',
            'ros-jazzy-diagnostic-msgs',
            'ros-jazzy-rosgraph-msgs',
            'ros-jazzy-sensor-msgs',
            'ros-jazzy-std-msgs',
            'ros-jazzy-std-srvs',
        ],
        'test': [
            'colcon-common-extensions',
            'hypothesis',
            'import-linter',
            'jsonschema',
            'mypy',
            'pyarrow',
            'pycocotools',
            'pytest',
            'pytest-timeout',
            'pytest-xdist',
            'ruff',
            'types-PyYAML',
        ],
    },
    entry_points={
        'console_scripts': [
            'dual_vlm_node = gmskip_ros.ros.dual_vlm_node:main',
            'image_player = gmskip_ros.ros.image_player:main',
            'gmskip = gmskip_ros.cli.main:main',
        ],
    },
)
