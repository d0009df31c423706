"""Rendered scenes match their labels."""

from __future__ import annotations

import numpy as np
import pytest

from gmskip_ros.datasets.scenes import (
    CLASSES,
    MAIN_OBJECT_RATIO,
    MIN_VISIBLE_AREA,
    Scene,
    render_scene,
)


@pytest.fixture(scope='module')
def scenes() -> list[Scene]:
    return [render_scene(seed, 320, 240) for seed in range(60)]


def test_a_seed_gives_the_same_pixels_again(scenes: list[Scene]) -> None:
    again = render_scene(7, 320, 240)
    assert np.array_equal(again.image, scenes[7].image)
    assert again.objects == scenes[7].objects
    assert not np.array_equal(again.image, scenes[8].image)


def test_scenes_are_those_that_the_demo_model_was_trained_on(scenes: list[Scene]) -> None:
    expected = [
        ('A pedestrian on a wet road by day.', [5030], 126.679),
        ('A traffic light on a wet road at night.', [3707], 25.817),
        ('A pedestrian, a truck and a dog on a dry road by day.', [1327, 10631, 2464], 129.155),
        ('A dog on a dry road at night.', [2854], 27.667),
    ]
    for scene, (caption, areas, mean_pixel) in zip(scenes, expected, strict=False):
        assert scene.caption == caption
        # Versions of OpenCV may differ in rounding.
        assert [thing.visible_area for thing in scene.objects] == pytest.approx(areas, rel=0.01)
        assert scene.image.mean() == pytest.approx(mean_pixel, abs=0.1)


def test_labels_match_the_instance_map(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert scene.image.shape == (240, 320, 3) and scene.image.dtype == np.uint8
        assert list(scene.labels) == sorted(set(scene.labels), key=CLASSES.index)
        assert set(np.unique(scene.instances)) <= set(range(len(scene.objects) + 1))
        for number, thing in enumerate(scene.objects, start=1):
            ys, xs = np.nonzero(scene.instances == number)
            assert thing.visible_area == len(xs) >= MIN_VISIBLE_AREA * 320 * 240
            x, y, width, height = thing.box
            assert (x, x + width - 1, y, y + height - 1) == (xs.min(), xs.max(), ys.min(), ys.max())


def test_the_main_object_is_the_largest_by_the_minimum_ratio(scenes: list[Scene]) -> None:
    for scene in scenes:
        areas = {thing.name: thing.visible_area for thing in scene.objects}
        main = areas.pop(scene.main_object)
        assert all(main >= MAIN_OBJECT_RATIO * area for area in areas.values())


def test_a_caption_names_every_object_and_no_other(scenes: list[Scene]) -> None:
    for scene in scenes:
        named = {name for name in CLASSES if name.replace('_', ' ') in scene.caption.lower()}
        assert named == set(scene.labels)
        assert scene.caption[0] == 'A' and scene.caption.endswith('.')


def test_every_class_weather_and_light_occurs(scenes: list[Scene]) -> None:
    assert {name for scene in scenes for name in scene.labels} == set(CLASSES)
    assert {scene.main_object for scene in scenes} == set(CLASSES)
    assert {scene.weather for scene in scenes} == {'dry', 'wet', 'foggy', 'snowy'}
    assert {scene.light for scene in scenes} == {'day', 'dusk', 'night'}


def test_objects_are_distinguishable_from_the_road(scenes: list[Scene]) -> None:
    """Each labelled object has structure of its own, so it can be seen."""
    for scene in scenes[:30]:
        for number in range(1, len(scene.objects) + 1):
            inside = scene.image[scene.instances == number].astype(float)
            assert inside.std() > 5


def test_an_image_that_is_too_small_is_refused() -> None:
    with pytest.raises(ValueError, match='63 x 480'):
        render_scene(0, 63, 480)
