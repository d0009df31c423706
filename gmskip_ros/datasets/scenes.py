"""Rendered driving scenes with exact labels, so that everything runs without a download.

A scene is a road with one to four objects from ten of CODA's classes, in varied weather and light.
Everything follows from the seed. Objects are drawn as vector shapes, far to near, into the image
and into an instance map, so that the visible part of each is known to the pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from gmskip_ros.datasets.scene_shapes import DRAW, Brush, Colour, Point

CLASSES = (
    'pedestrian',
    'cyclist',
    'car',
    'truck',
    'tricycle',
    'bus',
    'traffic_cone',
    'barrier',
    'traffic_light',
    'dog',
)
MAIN_OBJECT_RATIO = 1.5  # minimum of the main object's visible area / any other's
MIN_VISIBLE_AREA = 0.006  # of the image
MIN_VISIBLE_FRACTION = 0.5  # of the object's own area; the rest may be hidden or outside


@dataclass(frozen=True)
class SceneObject:
    """One visible object: class, box of its visible part, number of visible pixels."""

    name: str
    box: tuple[int, int, int, int]  # x, y, width, height in pixels
    visible_area: int


@dataclass(frozen=True)
class Scene:
    """A rendered scene.

    `image`: uint8 RGB (H, W, 3). `instances`: uint8 (H, W), i + 1 where `objects[i]` is visible,
    otherwise 0. `objects`: in the order of `CLASSES`, each class at most once.
    """

    image: np.ndarray
    instances: np.ndarray
    objects: tuple[SceneObject, ...]
    weather: str
    light: str

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes in the image, in the order of `CLASSES`."""
        return tuple(thing.name for thing in self.objects)

    @property
    def main_object(self) -> str:
        """The class with the largest visible area (by at least MAIN_OBJECT_RATIO)."""
        return max(self.objects, key=lambda thing: thing.visible_area).name

    @property
    def caption(self) -> str:
        """One sentence that names every object, the weather and the light."""
        things = ['a ' + name.replace('_', ' ') for name in self.labels]
        listed = ' and '.join(filter(None, [', '.join(things[:-1]), things[-1]]))
        when = {'day': 'by day', 'dusk': 'at dusk', 'night': 'at night'}[self.light]
        return f'{listed[0].upper()}{listed[1:]} on a {self.weather} road {when}.'


def render_scene(seed: int, width: int = 640, height: int = 480) -> Scene:
    """Return the scene of this seed; the same arguments give the same pixels.

    Raises ValueError for an image smaller than 64 x 64.
    """
    if width < 64 or height < 64:
        raise ValueError(f'a scene of {width} x {height} pixels is too small: use 64 x 64 or more')
    rng = np.random.default_rng(seed)
    while True:  # until the objects do not hide each other too much
        scene = _try_scene(rng, width, height)
        if scene is not None:
            return scene


# ---------------------------------------------------------------------------------- composition


def _try_scene(rng: np.random.Generator, width: int, height: int) -> Scene | None:
    weather = str(rng.choice(['dry', 'wet', 'foggy', 'snowy'], p=[0.4, 0.25, 0.15, 0.2]))
    light = str(rng.choice(['day', 'dusk', 'night'], p=[0.5, 0.25, 0.25]))
    count = int(rng.choice([1, 2, 3, 4], p=[0.2, 0.35, 0.3, 0.15]))
    classes = rng.choice(len(CLASSES), size=count, replace=False)
    horizon = height * rng.uniform(0.36, 0.5)

    image = _background(rng, width, height, horizon, weather, light)
    instances = np.zeros((height, width), np.uint8)
    placed = _place(rng, classes, width, height, horizon)
    own_area = {}
    for index, (x, ground, size, flip) in sorted(placed.items(), key=lambda item: item[1][1]):
        brush = Brush(image, instances, index + 1, x, ground, size, flip)
        brush.shadow(0.5 if light == 'day' else 0.3)
        DRAW[CLASSES[index]](brush, rng)
        own_area[index] = brush.area()
    _atmosphere(rng, image, horizon, weather, light)

    objects = []
    renumbered = np.zeros_like(instances)
    for index in sorted(placed):
        ys, xs = np.nonzero(instances == index + 1)
        if len(xs) < max(MIN_VISIBLE_AREA * width * height, MIN_VISIBLE_FRACTION * own_area[index]):
            return None
        box = (int(xs.min()), int(ys.min()), int(np.ptp(xs)) + 1, int(np.ptp(ys)) + 1)
        objects.append(SceneObject(CLASSES[index], box, len(xs)))
        renumbered[ys, xs] = len(objects)
    areas = sorted((thing.visible_area for thing in objects), reverse=True)
    if len(areas) > 1 and areas[0] < MAIN_OBJECT_RATIO * areas[1]:
        return None
    return Scene(image, renumbered, tuple(objects), weather, light)


# Heights, roughly in metres.
_HEIGHT = {
    'pedestrian': 1.75,
    'cyclist': 1.8,
    'car': 1.5,
    'truck': 3.3,
    'tricycle': 1.9,
    'bus': 3.2,
    'traffic_cone': 1.0,
    'barrier': 1.15,
    'traffic_light': 4.2,
    'dog': 0.95,
}


def _place(
    rng: np.random.Generator, classes: np.ndarray, width: int, height: int, horizon: float
) -> dict[int, tuple[float, float, float, bool]]:
    """Return class index -> (x of the centre, y of the ground, height, mirrored), in pixels.

    The first class is the main one: it is nearer than the others.
    """
    placed = {}
    slots = rng.permutation(np.linspace(-0.85, 0.85, max(3, len(classes) + 1)))
    for order, index in enumerate(classes):
        low, high = (0.3, 0.62) if order == 0 else (0.14, 0.36)
        size = height * rng.uniform(low, high) * _HEIGHT[CLASSES[index]] ** 0.35 / 1.25
        # A larger object is nearer, so it stands lower in the image.
        nearness = min(1.0, size / (height * 0.55) / _HEIGHT[CLASSES[index]] ** 0.3 + 0.1)
        ground = (
            horizon + (height - horizon) * (0.12 + 0.84 * nearness) + rng.normal(0, 0.01) * height
        )
        x = width * (0.5 + 0.42 * slots[order]) + rng.normal(0, 0.03) * width
        placed[int(index)] = (
            float(x),
            float(min(ground, height * 0.99)),
            float(size),
            bool(rng.random() < 0.5),
        )
    return placed


def _background(
    rng: np.random.Generator, width: int, height: int, horizon: float, weather: str, light: str
) -> np.ndarray:
    """Return sky, skyline, verge and road, uint8 RGB (H, W, 3)."""
    sky: tuple[Colour, Colour] = {
        'day': ((92, 150, 215), (205, 225, 240)),
        'dusk': ((70, 72, 120), (240, 168, 120)),
        'night': ((12, 16, 34), (38, 44, 66)),
    }[light]
    if weather != 'dry' and light != 'night':
        grey = np.array([168.0, 172.0, 178.0]) * (1.0 if light == 'day' else 0.75)
        sky = (0.3 * np.array(sky[0]) + 0.7 * grey, 0.3 * np.array(sky[1]) + 0.7 * grey)
    jitter = rng.uniform(0.9, 1.1)
    ramp = np.clip(np.arange(height) / horizon, 0, 1)[:, None]
    rows = (1 - ramp) * np.array(sky[0]) + ramp * np.array(sky[1])  # (H, 3)
    image = np.repeat((rows * jitter).clip(0, 255).astype(np.uint8)[:, None], width, axis=1)
    dim = {'day': 1.0, 'dusk': 0.7, 'night': 0.34}[light]

    def fill(points: Sequence[Point], colour: Colour) -> None:
        pixels = np.round(np.array(points) * 16).astype(np.int32)
        shade = tuple(float(np.clip(c * dim, 0, 255)) for c in colour)
        cv2.fillPoly(image, [pixels], shade, cv2.LINE_AA, 4)

    x = -0.05 * width
    while x < width:  # the skyline: houses and trees
        w = width * rng.uniform(0.05, 0.16)
        tall = height * rng.uniform(0.05, 0.26)
        top = horizon - tall
        if rng.random() < 0.6:
            colour = rng.uniform(95, 185) * np.array(
                [1.0, rng.uniform(0.88, 1), rng.uniform(0.8, 1)]
            )
            fill([(x, horizon + 2), (x, top), (x + w, top), (x + w, horizon + 2)], colour)
            lit = (250 / dim, 214 / dim, 140 / dim)
            step = max(5.0, height * 0.034)
            for wy in np.arange(top + step * 0.5, horizon - step, step):
                for wx in np.arange(x + step * 0.4, x + w - step * 0.6, step):
                    glow = light != 'day' and rng.random() < 0.35
                    window = lit if glow else colour * 0.62
                    fill(
                        [
                            (wx, wy),
                            (wx + step * 0.5, wy),
                            (wx + step * 0.5, wy + step * 0.55),
                            (wx, wy + step * 0.55),
                        ],
                        window,
                    )
        else:
            green = np.array([58, 108, 52]) * rng.uniform(0.7, 1.25)
            fill(
                [
                    (x + w * 0.45, horizon + 2),
                    (x + w * 0.45, top),
                    (x + w * 0.55, top),
                    (x + w * 0.55, horizon + 2),
                ],
                (92, 70, 52),
            )
            for _ in range(5):
                cx, cy = x + w * rng.uniform(0.3, 0.7), horizon - tall * rng.uniform(0.4, 0.95)
                shade = tuple(
                    float(np.clip(c * dim * rng.uniform(0.85, 1.1), 0, 255)) for c in green
                )
                cv2.circle(
                    image,
                    (int(cx * 16), int(cy * 16)),
                    int(w * 0.24 * 16),
                    shade,
                    -1,
                    cv2.LINE_AA,
                    4,
                )
        x += w * rng.uniform(0.8, 1.3)

    verge = (
        (225, 230, 235) if weather == 'snowy' else np.array([104, 128, 76]) * rng.uniform(0.8, 1.2)
    )
    if rng.random() < 0.4:
        verge = (205, 208, 212) if weather == 'snowy' else (150, 146, 140)  # pavement
    fill([(0, horizon), (width, horizon), (width, height), (0, height)], verge)
    road = rng.uniform(78, 112) * np.array([1.0, 1.0, 1.04]) * (0.78 if weather == 'wet' else 1.0)
    if weather == 'snowy':
        road = road + 40
    vanish = width * rng.uniform(0.42, 0.58)
    near, far = width * rng.uniform(0.55, 0.75), width * 0.035
    fill(
        [
            (vanish - far, horizon),
            (vanish + far, horizon),
            (width / 2 + near, height),
            (width / 2 - near, height),
        ],
        road,
    )

    def on_road(across: float, t: float) -> Point:  # t: 0 at the horizon, 1 at the lower edge
        left, right = (
            vanish - far + (width / 2 - near - vanish + far) * t,
            vanish + far + (width / 2 + near - vanish - far) * t,
        )
        return left + (right - left) * (across + 1) / 2, horizon + (height - horizon) * t

    for across in (-0.94, 0.94):
        fill(
            [
                on_road(across - 0.015, 0),
                on_road(across + 0.015, 0),
                on_road(across + 0.015, 1),
                on_road(across - 0.015, 1),
            ],
            (215, 215, 210),
        )
    phase = rng.uniform(0, 1)
    for across in (-0.31, 0.31):
        for k in range(9):
            t0, t1 = ((k + phase) / 9) ** 2, min(1.0, ((k + phase + 0.5) / 9) ** 2)
            fill(
                [
                    on_road(across - 0.012, t0),
                    on_road(across + 0.012, t0),
                    on_road(across + 0.012, t1),
                    on_road(across - 0.012, t1),
                ],
                (222, 222, 214),
            )
    return image


def _atmosphere(
    rng: np.random.Generator, image: np.ndarray, horizon: float, weather: str, light: str
) -> None:
    """Draw light and weather over the image, in place."""
    height, width = image.shape[:2]
    out = image.astype(np.float32)
    if light == 'night':
        ys, xs = np.mgrid[0:height, 0:width].astype(np.float32)
        beam = np.exp(
            -(((xs - width / 2) / (0.42 * width)) ** 2)
            - ((ys - height * 0.92) / (0.4 * height)) ** 2
        )
        out *= (0.6 + 0.55 * beam)[..., None] * np.array([1.0, 0.97, 0.9], np.float32)
    elif light == 'dusk':
        out *= np.array([0.93, 0.8, 0.76], np.float32)
    if weather == 'foggy':
        distance = np.clip(1 - np.abs(np.arange(height) - horizon) / (height * 0.55), 0, 1) ** 1.5
        veil = (rng.uniform(0.3, 0.6) * distance)[:, None, None].astype(np.float32)
        fog = {'day': 205.0, 'dusk': 140.0, 'night': 62.0}[light]
        out = out * (1 - veil) + fog * veil
    image[:] = out.clip(0, 255).astype(np.uint8)
    if weather in ('wet', 'snowy'):
        layer = image.copy()
        bright = {'day': 225, 'dusk': 190, 'night': 120}[light]
        for _ in range(int(rng.integers(60, 160))):
            x, y = rng.uniform(0, width), rng.uniform(0, height)
            if weather == 'wet':
                length = height * rng.uniform(0.02, 0.06)
                end = (int((x - 0.15 * length) * 16), int((y + length) * 16))
                cv2.line(layer, (int(x * 16), int(y * 16)), end, (bright,) * 3, 1, cv2.LINE_AA, 4)
            else:
                radius = height * rng.uniform(0.002, 0.006)
                cv2.circle(
                    layer,
                    (int(x * 16), int(y * 16)),
                    int(radius * 16),
                    (bright + 20,) * 3,
                    -1,
                    cv2.LINE_AA,
                    4,
                )
        cv2.addWeighted(
            layer,
            0.45 if weather == 'wet' else 0.8,
            image,
            0.55 if weather == 'wet' else 0.2,
            0,
            image,
        )
    noise = rng.normal(0, rng.uniform(1, 5), (height, width, 1))
    image[:] = (image + noise).clip(0, 255).astype(np.uint8)
