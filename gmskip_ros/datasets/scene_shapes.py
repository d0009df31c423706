"""The objects of rendered scenes, drawn as vector shapes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import cv2
import numpy as np

Colour: TypeAlias = 'Sequence[float] | np.ndarray'  # RGB, 0 to 255
Number: TypeAlias = 'float | np.floating[Any]'
Point: TypeAlias = 'tuple[Number, Number]'


class Brush:
    """Draws one object; coordinates start at its ground point, y up, in units of its height."""

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
        pad = int(size * 3) + 8  # the object's own area includes parts outside the image
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
        """Fill an axis-aligned rectangle."""
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
        """Draw a tyre with its rim, standing on the ground."""
        self.disc(x, radius, radius, (26, 26, 28))
        self.disc(x, radius, radius * 0.52, (150, 152, 156))

    def ring(self, x: float, radius: float) -> None:
        """Draw a bicycle wheel, standing on the ground."""
        angles = np.linspace(0, 2 * math.pi, 17)
        rim = [(x + radius * math.cos(a), radius + radius * math.sin(a)) for a in angles]
        for a, b in itertools.pairwise(rim):
            self.limb(a, b, radius * 0.24, (24, 24, 26))

    def shadow(self, strength: float) -> None:
        """Darken the ground under the object; the shadow is not part of the object."""
        layer = self.image.copy()
        centre = (int(self.x * 16), int(self.ground * 16))
        axes = (int(self.size * 0.55 * 16), int(self.size * 0.05 * 16))
        cv2.ellipse(layer, centre, axes, 0, 0, 360, (20, 20, 24), -1, cv2.LINE_AA, 4)
        cv2.addWeighted(layer, strength, self.image, 1 - strength, 0, self.image)

    def area(self) -> int:
        """Return the object's own area in pixels, including hidden parts and those outside."""
        return int(np.count_nonzero(self._own))


def _paint(rng: np.random.Generator) -> np.ndarray:
    """Return a random colour for a vehicle or a garment."""
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


def _pedestrian(b: Brush, rng: np.random.Generator) -> None:
    shirt, trousers, skin = _paint(rng), _paint(rng) * 0.6, _SKIN[int(rng.integers(3))]
    stride = rng.uniform(0.03, 0.13)
    b.limb((0, 0.5), (-stride, 0.0), 0.11, trousers)
    b.limb((0, 0.5), (stride, 0.0), 0.11, trousers * 0.85)
    b.limb((-0.1, 0.8), (-0.15 - stride * 0.4, 0.46), 0.075, shirt * 0.8)
    b.limb((0.1, 0.8), (0.15 + stride * 0.4, 0.46), 0.075, shirt * 0.8)
    b.poly([(-0.1, 0.46), (0.1, 0.46), (0.14, 0.82), (-0.14, 0.82)], shirt)
    b.disc(0, 0.91, 0.085, skin)
    b.poly([(-0.088, 0.91), (0.088, 0.91), (0.06, 1.0), (-0.06, 1.0)], (44, 34, 30))


def _cyclist(b: Brush, rng: np.random.Generator) -> None:
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


def _car(b: Brush, rng: np.random.Generator) -> None:
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


def _truck(b: Brush, rng: np.random.Generator) -> None:
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


def _bus(b: Brush, rng: np.random.Generator) -> None:
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


def _tricycle(b: Brush, rng: np.random.Generator) -> None:
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


def _traffic_cone(b: Brush, rng: np.random.Generator) -> None:
    orange = np.array([246, 104, 30]) * rng.uniform(0.88, 1.05)
    b.poly([(-0.4, 0.0), (0.4, 0.0), (0.36, 0.1), (-0.36, 0.1)], orange * 0.8)
    b.poly([(-0.28, 0.1), (0.28, 0.1), (0.06, 1.0), (-0.06, 1.0)], orange)
    b.poly([(-0.21, 0.38), (0.21, 0.38), (0.165, 0.56), (-0.165, 0.56)], (244, 244, 240))
    if rng.random() < 0.6:
        b.poly([(-0.125, 0.72), (0.125, 0.72), (0.09, 0.86), (-0.09, 0.86)], (244, 244, 240))


def _barrier(b: Brush, rng: np.random.Generator) -> None:
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


def _traffic_light(b: Brush, rng: np.random.Generator) -> None:
    b.rect(-0.022, 0.0, 0.022, 0.62, (86, 88, 92))
    b.rect(-0.07, 0.0, 0.07, 0.035, (70, 72, 76))
    b.rect(-0.13, 0.56, 0.13, 1.0, (30, 32, 34))
    b.rect(-0.11, 0.575, 0.11, 0.985, (48, 50, 52))
    lit = int(rng.integers(3))
    lamps = ((250, 40, 36), (252, 196, 40), (44, 230, 110))
    for k, y in enumerate((0.915, 0.78, 0.645)):
        colour = np.array(lamps[k]) if k == lit else np.array(lamps[k]) * 0.22
        b.disc(0, y, 0.058, colour)


def _dog(b: Brush, rng: np.random.Generator) -> None:
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


DRAW: dict[str, Callable[[Brush, np.random.Generator], None]] = {
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
