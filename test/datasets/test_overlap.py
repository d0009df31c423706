"""Which names of datasets may stand for the same images."""

from __future__ import annotations

import pytest

from gmskip_ros.datasets import may_share_pictures


@pytest.mark.parametrize(
    'one, other, may',
    [
        ('scenes-0-100', 'scenes-0-100', True),
        ('scenes-0-100', 'scenes-99-1', True),
        ('scenes-0-100', 'scenes-50-10', True),
        ('scenes-0-100', 'scenes-100-1', False),
        ('scenes-20000000-600', 'scenes-0-1000', False),
        ('scenes-0-100', 'scenes', False),
        ('coco-train2017', 'coco-val2017', False),
        ('coco-val2014', 'coco-val2017', True),
        ('coco-train2017', 'coco-val2014', True),
        ('coco-karpathy-test', 'coco-val2014', True),
        ('coco-karpathy-test', 'coco-karpathy-val', False),
        ('coda-val', 'coda-test', False),
        ('coda-val', 'coda-sample', True),
        ('coda-val', 'coco-val2017', False),
        ('mine', 'mine', True),
        ('mine', 'yours', False),
        ('None', 'coco-val2017', False),
    ],
)
def test_which_datasets_may_share_images(one, other, may):
    assert may_share_pictures(one, other) == may_share_pictures(other, one) == may
