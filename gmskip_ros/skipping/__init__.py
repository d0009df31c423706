"""Skip lists: which Transformer blocks may be skipped, in which order, and how that was found."""

from gmskip_ros.skipping.errors import SkipListError, SkipListMismatchError, SkipSetError
from gmskip_ros.skipping.file import load_skip_list, save_skip_list, shipped_skip_lists
from gmskip_ros.skipping.skip_list import (
    JOINT,
    OPERATING_POINTS,
    Baselines,
    ConstantBaseline,
    Prompt,
    Removal,
    SkipList,
    derive_operating_points,
    derive_operating_points_of_sets,
    meets_ratio,
)
from gmskip_ros.skipping.skip_set import (
    AXES,
    IMAGE_KV_POLICIES,
    KV_POLICIES,
    PHASES,
    SkipSet,
)

__all__ = [
    'AXES',
    'IMAGE_KV_POLICIES',
    'JOINT',
    'KV_POLICIES',
    'OPERATING_POINTS',
    'PHASES',
    'Baselines',
    'ConstantBaseline',
    'Prompt',
    'Removal',
    'SkipList',
    'SkipListError',
    'SkipListMismatchError',
    'SkipSet',
    'SkipSetError',
    'derive_operating_points',
    'derive_operating_points_of_sets',
    'load_skip_list',
    'meets_ratio',
    'save_skip_list',
    'shipped_skip_lists',
]
