"""Dataset readers, and rendered driving scenes (`gmskip_ros.datasets.scenes`)."""

from gmskip_ros.datasets.errors import DatasetError
from gmskip_ros.datasets.image_file import read_image
from gmskip_ros.datasets.opening import open_dataset
from gmskip_ros.datasets.overlap import may_share_pictures
from gmskip_ros.datasets.sample import (
    Dataset,
    PresenceQuestion,
    Sample,
    choose_samples,
    sample_hash,
)
from gmskip_ros.datasets.scenes_writer import write_scenes
from gmskip_ros.datasets.view import within_view

__all__ = [
    'Dataset',
    'DatasetError',
    'PresenceQuestion',
    'Sample',
    'choose_samples',
    'may_share_pictures',
    'open_dataset',
    'read_image',
    'sample_hash',
    'within_view',
    'write_scenes',
]
