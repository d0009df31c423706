"""Rendered driving scenes with exact labels, so that everything runs without a download.

A scene is a road with one to four objects of ten of CODA's classes in varied weather and light.
Everything follows from the seed. Objects are drawn as vector shapes, far to near, into the picture
and into a map of instances at once, so that what is visible of each is known to the pixel.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import cv2
import numpy as np

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
MAIN_OBJECT_RATIO = 1.5  # the main object's visible area over every other one's, at least
MIN_VISIBLE_AREA = 0.006  # of the picture
MIN_VISIBLE_FRACTION = 0.5  # of the object's own area, the rest may be hidden or cut off

Colour: TypeAlias = 'Sequence[float] | np.ndarray'  # RGB, 0 to 255
Number: TypeAlias = 'float | np.floating[Any]'
Point: TypeAlias = 'tuple[Number, Number]'


@dataclass(frozen=True)
class SceneObject:
    """One visible object: its class, its visible part's box in pixels, its visible pixels."""

    name: str
    box: tuple[int, int, int, int]  # x, y, width, height
    visible_area: int


@dataclass(frozen=True)
class Scene:
    """A rendered scene.

    `image`: uint8 RGB (H, W, 3). `instances`: uint8 (H, W), 0 for none, i + 1 where `objects[i]` is
    visible. `objects`: in the order of `CLASSES`, every class at most once.
    """

    image: np.ndarray
    instances: np.ndarray
    objects: tuple[SceneObject, ...]
    weather: str
    light: str

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes in the picture, in the order of `CLASSES`."""
        return tuple(thing.name for thing in self.objects)

    @property
    def main_object(self) -> str:
        """The class with the largest visible area (by MAIN_OBJECT_RATIO or more)."""
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

    Raises ValueError for a picture smaller than 64 x 64.
    """
    if width < 64 or height < 64:
        raise ValueError(f'a scene of {width} x {height} pixels is too small: use 64 x 64 or more')
    rng = np.random.default_rng(seed)
    while True:  # until a draw in which the objects do not hide one another too much
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
        brush = _Brush(image, instances, index + 1, x, ground, size, flip)
        brush.shadow(0.5 if light == 'day' else 0.3)
        _DRAW[CLASSES[index]](brush, rng)
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


# Height in metres-like units and the range of places across the road (-1 left kerb, 1 right kerb).
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
    """Return class index -> (x of the middle, y of the ground, height, mirrored), all in pixels.

    The first class is the main one: it comes nearer than the others.
    """
    placed = {}
    slots = rng.permutation(np.linspace(-0.85, 0.85, max(3, len(classes) + 1)))
    for order, index in enumerate(classes):
        low, high = (0.3, 0.62) if order == 0 else (0.14, 0.36)
        size = height * rng.uniform(low, high) * _HEIGHT[CLASSES[index]] ** 0.35 / 1.25
        # A larger thing stands nearer, so its feet are lower in the picture.
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
    """Draw light and weather over the finished picture, in place."""
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


# ------------------------------------------------------------------------------------- objects


class _Brush:
    """Draws one object's shapes: x to the right and y up, from the ground point, in its heights."""

    def __init__(
        self,
        image: np.ndarray,
        instances: np.ndarray,
        number: int,
        x: float,
        ground: float,
        size: float,
        flip: bool,
    ) -> None:
        self.image, self.instances, self.number = image, instances, number
        self.x, self.ground, self.size, self.flip = x, ground, size, flip
        pad = int(size * 3) + 8  # the object's own area is counted off the picture, too
        self._pad = pad
        self._own = np.zeros((image.shape[0] + 2 * pad, image.shape[1] + 2 * pad), np.uint8)

    def _pixels(self, points: Sequence[Point]) -> np.ndarray:
        sign = -1.0 if self.flip else 1.0
        array = np.array(points, np.float64) * self.size
        return np.stack([self.x + sign * array[:, 0], self.ground - array[:, 1]], axis=1)

    def poly(self, points: Sequence[Point], colour: Colour) -> None:
        """Fill a polygon."""
        pixels = np.round(self._pixels(points) * 16).astype(np.int32)
        shade = tuple(float(np.clip(c, 0, 255)) for c in colour)
        cv2.fillPoly(self.image, [pixels], shade, cv2.LINE_AA, 4)
        cv2.fillPoly(self.instances, [pixels], (self.number,), cv2.LINE_8, 4)
        cv2.fillPoly(self._own, [pixels + self._pad * 16], (1,), cv2.LINE_8, 4)

    def rect(self, x0: float, y0: float, x1: float, y1: float, colour: Colour) -> None:
        """Fill an upright rectangle."""
        self.poly([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], colour)

    def disc(self, x: float, y: float, rx: float, colour: Colour, ry: float | None = None) -> None:
        """Fill an ellipse."""
        ry = rx if ry is None else ry
        angles = np.linspace(0, 2 * math.pi, 24, endpoint=False)
        self.poly([(x + rx * math.cos(a), y + ry * math.sin(a)) for a in angles], colour)

    def limb(self, a: Point, b: Point, thick: float, colour: Colour) -> None:
        """Fill a bar from a to b."""
        dx, dy = b[0] - a[0], b[1] - a[1]
        norm = math.hypot(dx, dy) or 1.0
        ox, oy = -dy / norm * thick / 2, dx / norm * thick / 2
        self.poly(
            [
                (a[0] + ox, a[1] + oy),
                (b[0] + ox, b[1] + oy),
                (b[0] - ox, b[1] - oy),
                (a[0] - ox, a[1] - oy),
            ],
            colour,
        )

    def wheel(self, x: float, radius: float) -> None:
        """Draw a tyre that stands on the ground, with its rim."""
        self.disc(x, radius, radius, (26, 26, 28))
        self.disc(x, radius, radius * 0.52, (150, 152, 156))

    def ring(self, x: float, radius: float) -> None:
        """Draw a bicycle's wheel."""
        angles = np.linspace(0, 2 * math.pi, 17)
        rim = [(x + radius * math.cos(a), radius + radius * math.sin(a)) for a in angles]
        for a, b in itertools.pairwise(rim):
            self.limb(a, b, radius * 0.24, (24, 24, 26))

    def shadow(self, strength: float) -> None:
        """Darken the ground under the object; the shadow is not the object."""
        layer = self.image.copy()
        centre = (int(self.x * 16), int(self.ground * 16))
        axes = (int(self.size * 0.55 * 16), int(self.size * 0.05 * 16))
        cv2.ellipse(layer, centre, axes, 0, 0, 360, (20, 20, 24), -1, cv2.LINE_AA, 4)
        cv2.addWeighted(layer, strength, self.image, 1 - strength, 0, self.image)

    def area(self) -> int:
        """Return the object's own pixels, hidden and cut-off ones included."""
        return int(np.count_nonzero(self._own))


def _paint(rng: np.random.Generator) -> np.ndarray:
    """Return a vehicle's or garment's colour."""
    palette = [
        (196, 36, 40),
        (36, 72, 168),
        (238, 238, 240),
        (40, 42, 48),
        (150, 154, 160),
        (238, 196, 44),
        (36, 128, 82),
        (120, 56, 132),
        (226, 120, 40),
        (96, 160, 206),
    ]
    return np.array(palette[int(rng.integers(len(palette)))]) * rng.uniform(0.8, 1.08)


_GLASS = (120, 160, 184)
_SKIN = ((236, 194, 162), (198, 146, 110), (126, 86, 62))


def _pedestrian(b: _Brush, rng: np.random.Generator) -> None:
    shirt, trousers, skin = _paint(rng), _paint(rng) * 0.6, _SKIN[int(rng.integers(3))]
    stride = rng.uniform(0.03, 0.13)
    b.limb((0, 0.5), (-stride, 0.0), 0.11, trousers)
    b.limb((0, 0.5), (stride, 0.0), 0.11, trousers * 0.85)
    b.limb((-0.1, 0.8), (-0.15 - stride * 0.4, 0.46), 0.075, shirt * 0.8)
    b.limb((0.1, 0.8), (0.15 + stride * 0.4, 0.46), 0.075, shirt * 0.8)
    b.poly([(-0.1, 0.46), (0.1, 0.46), (0.14, 0.82), (-0.14, 0.82)], shirt)
    b.disc(0, 0.91, 0.085, skin)
    b.poly([(-0.088, 0.91), (0.088, 0.91), (0.06, 1.0), (-0.06, 1.0)], (44, 34, 30))


def _cyclist(b: _Brush, rng: np.random.Generator) -> None:
    shirt, trousers, skin, frame = (
        _paint(rng),
        _paint(rng) * 0.5,
        _SKIN[int(rng.integers(3))],
        _paint(rng),
    )
    b.ring(-0.33, 0.21)
    b.ring(0.33, 0.21)
    for a, c in (
        ((-0.33, 0.21), (-0.1, 0.5)),
        ((-0.1, 0.5), (0.22, 0.5)),
        ((-0.33, 0.21), (0.0, 0.2)),
        ((0.0, 0.2), (0.22, 0.5)),
        ((0.22, 0.55), (0.33, 0.21)),
    ):
        b.limb(a, c, 0.045, frame)
    b.limb((-0.12, 0.57), (0.08, 0.42), 0.1, trousers)
    b.limb((0.08, 0.42), (0.0, 0.18), 0.085, trousers)
    b.poly([(-0.2, 0.56), (-0.05, 0.54), (0.15, 0.82), (0.0, 0.88)], shirt)
    b.limb((0.08, 0.8), (0.27, 0.58), 0.065, shirt * 0.8)
    b.disc(0.13, 0.91, 0.075, skin)
    b.poly([(0.03, 0.92), (0.23, 0.92), (0.18, 1.0), (0.07, 1.0)], _paint(rng))


def _car(b: _Brush, rng: np.random.Generator) -> None:
    paint = _paint(rng)
    if rng.random() < 0.5:  # from the side
        b.poly(
            [
                (-1.4, 0.2),
                (1.4, 0.2),
                (1.42, 0.48),
                (1.3, 0.58),
                (0.75, 0.63),
                (-1.3, 0.63),
                (-1.42, 0.5),
            ],
            paint,
        )
        b.poly([(-0.95, 0.62), (-0.62, 0.98), (0.3, 1.0), (0.78, 0.62)], paint * 0.92)
        b.poly([(-0.78, 0.65), (-0.54, 0.92), (-0.16, 0.92), (-0.16, 0.65)], _GLASS)
        b.poly([(-0.08, 0.65), (-0.08, 0.92), (0.27, 0.92), (0.6, 0.65)], _GLASS)
        b.rect(1.26, 0.42, 1.41, 0.53, (250, 236, 170))
        b.rect(-1.41, 0.42, -1.3, 0.55, (200, 30, 30))
        b.wheel(-0.85, 0.25)
        b.wheel(0.88, 0.25)
    else:  # from behind
        b.rect(-0.52, 0.0, -0.32, 0.25, (24, 24, 26))
        b.rect(0.32, 0.0, 0.52, 0.25, (24, 24, 26))
        b.poly(
            [(-0.6, 0.14), (0.6, 0.14), (0.62, 0.55), (0.55, 0.66), (-0.55, 0.66), (-0.62, 0.55)],
            paint,
        )
        b.poly([(-0.52, 0.64), (0.52, 0.64), (0.4, 1.0), (-0.4, 1.0)], paint * 0.92)
        b.poly([(-0.42, 0.67), (0.42, 0.67), (0.33, 0.93), (-0.33, 0.93)], _GLASS)
        b.rect(-0.58, 0.43, -0.38, 0.56, (214, 30, 34))
        b.rect(0.38, 0.43, 0.58, 0.56, (214, 30, 34))
        b.rect(-0.17, 0.3, 0.17, 0.42, (232, 232, 226))
        b.rect(-0.6, 0.14, 0.6, 0.22, paint * 0.55)


def _truck(b: _Brush, rng: np.random.Generator) -> None:
    paint, cargo = _paint(rng), np.array([228, 228, 224]) * rng.uniform(0.6, 1.0)
    if rng.random() < 0.35:
        cargo = _paint(rng)
    if rng.random() < 0.6:  # from the side: a cab before a long closed box
        b.rect(-1.1, 0.12, 0.95, 0.22, (46, 46, 50))
        b.rect(-1.12, 0.2, 0.42, 1.0, cargo)
        for x in (-0.72, -0.34, 0.04):
            b.rect(x, 0.22, x + 0.025, 0.98, cargo * 0.78)
        b.poly([(0.47, 0.14), (0.98, 0.14), (0.98, 0.44), (0.86, 0.76), (0.47, 0.78)], paint)
        b.poly([(0.62, 0.46), (0.92, 0.46), (0.83, 0.71), (0.62, 0.71)], _GLASS)
        for x in (-0.88, -0.6, 0.72):
            b.wheel(x, 0.13)
    else:  # from behind: two tall doors
        b.rect(-0.34, 0.0, -0.18, 0.16, (24, 24, 26))
        b.rect(0.18, 0.0, 0.34, 0.16, (24, 24, 26))
        b.rect(-0.39, 0.16, 0.39, 1.0, cargo)
        b.rect(-0.36, 0.2, -0.012, 0.96, cargo * 0.84)
        b.rect(0.012, 0.2, 0.36, 0.96, cargo * 0.84)
        b.rect(-0.06, 0.25, -0.03, 0.9, (70, 70, 74))
        b.rect(0.03, 0.25, 0.06, 0.9, (70, 70, 74))
        b.rect(-0.39, 0.1, 0.39, 0.17, (60, 60, 64))
        b.rect(-0.37, 0.11, -0.25, 0.16, (220, 30, 30))
        b.rect(0.25, 0.11, 0.37, 0.16, (220, 30, 30))


def _bus(b: _Brush, rng: np.random.Generator) -> None:
    paint, stripe = _paint(rng), _paint(rng)
    if rng.random() < 0.6:  # from the side: a row of windows
        b.poly(
            [(-1.35, 0.1), (1.35, 0.1), (1.37, 0.9), (1.28, 1.0), (-1.3, 1.0), (-1.37, 0.92)], paint
        )
        b.rect(-1.36, 0.3, 1.36, 0.38, stripe)
        for k in range(6):
            b.rect(-1.27 + k * 0.37, 0.52, -0.97 + k * 0.37, 0.86, _GLASS)
        b.rect(0.97, 0.14, 1.2, 0.86, (84, 116, 138))
        b.rect(1.08, 0.14, 1.095, 0.86, paint * 0.7)
        b.wheel(-0.85, 0.15)
        b.wheel(0.72, 0.15)
    else:  # from the front: one wide windscreen and a sign above it
        b.rect(-0.36, 0.0, -0.2, 0.15, (24, 24, 26))
        b.rect(0.2, 0.0, 0.36, 0.15, (24, 24, 26))
        b.poly(
            [(-0.42, 0.1), (0.42, 0.1), (0.43, 0.92), (0.36, 1.0), (-0.36, 1.0), (-0.43, 0.92)],
            paint,
        )
        b.rect(-0.38, 0.42, 0.38, 0.82, _GLASS)
        b.rect(-0.01, 0.42, 0.01, 0.82, paint * 0.6)
        b.rect(-0.3, 0.86, 0.3, 0.95, (30, 30, 32))
        b.rect(-0.22, 0.885, 0.22, 0.93, (250, 176, 40))
        b.disc(-0.31, 0.25, 0.055, (250, 240, 190))
        b.disc(0.31, 0.25, 0.055, (250, 240, 190))
        b.rect(-0.42, 0.1, 0.42, 0.15, paint * 0.55)


def _tricycle(b: _Brush, rng: np.random.Generator) -> None:
    paint, roof = _paint(rng), _paint(rng)
    b.poly(
        [
            (-0.62, 0.2),
            (0.38, 0.2),
            (0.6, 0.34),
            (0.5, 0.52),
            (0.3, 0.52),
            (0.2, 0.4),
            (-0.08, 0.4),
            (-0.1, 0.56),
            (-0.64, 0.56),
        ],
        paint,
    )
    b.poly(
        [(-0.66, 0.84), (-0.5, 0.99), (0.22, 1.0), (0.44, 0.86), (0.4, 0.82), (-0.66, 0.8)], roof
    )
    b.limb((-0.6, 0.55), (-0.6, 0.85), 0.05, roof * 0.7)
    b.limb((-0.1, 0.55), (-0.1, 0.85), 0.04, roof * 0.7)
    b.limb((0.5, 0.5), (0.36, 0.85), 0.05, roof * 0.7)
    b.disc(0.06, 0.68, 0.07, _SKIN[int(rng.integers(3))])
    b.poly([(-0.04, 0.4), (0.14, 0.4), (0.13, 0.62), (-0.02, 0.62)], _paint(rng))
    b.wheel(-0.42, 0.16)
    b.wheel(0.5, 0.16)


def _traffic_cone(b: _Brush, rng: np.random.Generator) -> None:
    orange = np.array([246, 104, 30]) * rng.uniform(0.88, 1.05)
    b.poly([(-0.4, 0.0), (0.4, 0.0), (0.36, 0.1), (-0.36, 0.1)], orange * 0.8)
    b.poly([(-0.28, 0.1), (0.28, 0.1), (0.06, 1.0), (-0.06, 1.0)], orange)
    b.poly([(-0.21, 0.38), (0.21, 0.38), (0.165, 0.56), (-0.165, 0.56)], (244, 244, 240))
    if rng.random() < 0.6:
        b.poly([(-0.125, 0.72), (0.125, 0.72), (0.09, 0.86), (-0.09, 0.86)], (244, 244, 240))


def _barrier(b: _Brush, rng: np.random.Generator) -> None:
    half = rng.uniform(0.8, 1.25)
    red = np.array(
        [[212, 34, 38], [236, 120, 30], [220, 180, 30]][int(rng.integers(3))]
    ) * rng.uniform(0.9, 1.05)
    for x in (-half * 0.72, half * 0.72):
        b.limb((x - 0.16, 0.0), (x, 0.9), 0.07, (80, 80, 84))
        b.limb((x + 0.16, 0.0), (x, 0.9), 0.07, (80, 80, 84))
    for low, high in ((0.66, 0.98), (0.24, 0.46)):
        b.rect(-half, low, half, high, (244, 244, 240))
        stripes = max(4, round(half * 5))
        wide = 2 * half / stripes
        slant = (high - low) * 0.5
        for k in range(0, stripes, 2):
            x0 = -half + k * wide
            x1 = min(x0 + wide, half)
            b.poly(
                [
                    (x0, low),
                    (x1, low),
                    (min(x1 + slant, half), high),
                    (min(x0 + slant, half), high),
                ],
                red,
            )


def _traffic_light(b: _Brush, rng: np.random.Generator) -> None:
    b.rect(-0.022, 0.0, 0.022, 0.62, (86, 88, 92))
    b.rect(-0.07, 0.0, 0.07, 0.035, (70, 72, 76))
    b.rect(-0.13, 0.56, 0.13, 1.0, (30, 32, 34))
    b.rect(-0.11, 0.575, 0.11, 0.985, (48, 50, 52))
    lit = int(rng.integers(3))
    lamps = ((250, 40, 36), (252, 196, 40), (44, 230, 110))
    for k, y in enumerate((0.915, 0.78, 0.645)):
        colour = np.array(lamps[k]) if k == lit else np.array(lamps[k]) * 0.22
        b.disc(0, y, 0.058, colour)


def _dog(b: _Brush, rng: np.random.Generator) -> None:
    coats = ((166, 112, 62), (70, 52, 42), (226, 208, 176), (42, 40, 42), (206, 150, 84))
    coat = np.array(coats[int(rng.integers(len(coats)))]) * rng.uniform(0.85, 1.05)
    for x in (-0.46, -0.32, 0.3, 0.44):
        b.limb((x, 0.44), (x + rng.uniform(-0.07, 0.07), 0.0), 0.1, coat * 0.85)
    b.poly([(-0.56, 0.4), (-0.5, 0.66), (0.34, 0.72), (0.54, 0.6), (0.5, 0.38), (0.0, 0.32)], coat)
    b.limb((-0.5, 0.6), (-0.76, rng.uniform(0.72, 0.95)), 0.09, coat)
    b.poly([(0.3, 0.6), (0.5, 0.5), (0.66, 0.8), (0.46, 0.9)], coat)
    b.disc(0.6, 0.84, 0.15, coat)
    b.poly([(0.64, 0.74), (0.88, 0.74), (0.88, 0.84), (0.66, 0.9)], coat * 0.92)
    b.poly([(0.46, 0.92), (0.6, 0.94), (0.5, 0.68)], coat * 0.6)
    b.disc(0.87, 0.81, 0.035, (20, 18, 18))
    b.rect(0.32, 0.62, 0.5, 0.68, (200, 40, 44))


_DRAW: dict[str, Callable[[_Brush, np.random.Generator], None]] = {
    'pedestrian': _pedestrian,
    'cyclist': _cyclist,
    'car': _car,
    'truck': _truck,
    'tricycle': _tricycle,
    'bus': _bus,
    'traffic_cone': _traffic_cone,
    'barrier': _barrier,
    'traffic_light': _traffic_light,
    'dog': _dog,
}
