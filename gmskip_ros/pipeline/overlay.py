"""Both branches' answers drawn on the camera's image: `~/debug/image` and the reports.

A panel along the top edge has one row per task; everything below `MAX_PANEL_FRACTION` of the height
keeps the camera's own pixels, so the road stays visible. Agreement is shown by shape, word and
colour (Okabe-Ito palette, which people with colour blindness can distinguish).
"""

from __future__ import annotations

import bisect
import functools
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

MAX_PANEL_FRACTION = 0.4  # of the image's height; nothing is drawn below it

RGB = tuple[int, int, int]
AGREES_RGB: RGB = (0, 158, 115)  # Okabe-Ito bluish green
DIFFERS_RGB: RGB = (213, 94, 0)  # Okabe-Ito vermillion
RAN_RGB: RGB = (86, 180, 233)  # Okabe-Ito sky blue
UNKNOWN_RGB: RGB = (240, 228, 66)  # Okabe-Ito yellow
SKIPPED_RGB: RGB = (110, 116, 124)
TEXT_RGB: RGB = (255, 255, 255)
DIM_RGB: RGB = (176, 182, 190)
PANEL_RGB: RGB = (14, 17, 22)
DIFFERS_ROW_RGB: RGB = (92, 38, 4)  # a dark vermillion behind white text
PANEL_OPACITY = 0.84

MIN_FONT_PX = 9  # smaller letters are illegible
MAX_TEXT_CHARS = 2000
MAX_ANSWER_LINES = 2
TRANSLITERATED = str.maketrans(
    {
        '–': '-',
        '—': '-',
        '−': '-',
        '×': 'x',
        '‘': "'",
        '’': "'",
        '„': '"',
        'ß': 'ss',
        'ø': 'o',
        'Ø': 'O',
        'ł': 'l',
        'Ł': 'L',
        'æ': 'ae',
        'Æ': 'AE',
        'œ': 'oe',
        'Œ': 'OE',
        'đ': 'd',
        'ı': 'i',
    }
)


@dataclass(frozen=True)
class OverlayAnswer:
    """One branch's answer to one task.

    `text` is the answer for people, or the model's own words if they are not `in_vocabulary`;
    `total_ms` counts preprocessing to the last token.
    """

    task: str
    branch: str  # 'skip' or 'full'
    text: str
    total_ms: float
    in_vocabulary: bool = True


@dataclass(frozen=True)
class OverlayTask:
    """One task on one frame; None for a branch that has not answered (yet)."""

    task: str
    skip: OverlayAnswer | None
    full: OverlayAnswer | None
    agree: bool | None
    skipped_blocks: tuple[int, ...]
    num_blocks: int


def draw_overlay(image: np.ndarray, tasks: Sequence[OverlayTask], *, title: str = '') -> np.ndarray:
    """Return a copy of `image` with the tasks' answers in a panel along its top edge.

    `image` is uint8 RGB of shape (H, W, 3); so is the result. Rows that do not fit into
    `MAX_PANEL_FRACTION` of the height are omitted: an image too small for text is returned
    unchanged. Raises ValueError only for a different shape or dtype.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(
            f'image: expected uint8 of shape (H, W, 3), got {image.dtype} of shape {image.shape}'
        )
    result = np.array(image, order='C')  # a copy: the camera's image is not changed
    height, width = result.shape[:2]
    layout = _Layout.of(height, width)
    if layout.answer_width < 4 * layout.font_px or not tasks:
        return result

    max_height = int(height * MAX_PANEL_FRACTION)
    rows = _rows(tasks, layout, max_height - layout.header_height)
    has_header = len(rows) == len(tasks)  # the answers have priority
    if not has_header:
        rows = _rows(tasks, layout, max_height)
    if not rows:
        return result

    top = layout.header_height if has_header else 0
    canvas = _Canvas(result[: top + sum(row.height for row in rows)], layout.font_px)
    if has_header:
        _draw_header(canvas, layout, title)
    for row in rows:
        _draw_row(canvas, layout, row, top)
        top += row.height
    result[:top] = canvas.pixels()
    return result


@dataclass(frozen=True)
class _Layout:
    """Sizes in pixels, derived from the image's size."""

    width: int
    font_px: int
    line: int  # from one line of text to the next
    gap: int
    header_height: int
    row_padding: int
    name_left: int
    name_width: int  # the left column: verdict, task name, block bar
    tag_left: int  # 'skip' / 'full'
    answer_left: int
    answer_width: int

    @classmethod
    def of(cls, height: int, width: int) -> _Layout:
        reference = min(height, width * 3 / 4)  # no huge letters on a wide strip
        font_px = max(MIN_FONT_PX, round(reference * 0.0275))
        gap = max(2, round(font_px * 0.4))
        line = round(font_px * 1.3)
        name_left = 3 * gap
        name_width = round(font_px * 14.5)
        tag_left = name_left + name_width + 2 * gap
        answer_left = tag_left + round(font_px * 2.5)
        latency_width = round(font_px * 4.6)
        return cls(
            width=width,
            font_px=font_px,
            line=line,
            gap=gap,
            header_height=line + gap,
            row_padding=gap + gap // 2,
            name_left=name_left,
            name_width=name_width,
            tag_left=tag_left,
            answer_left=answer_left,
            answer_width=width - answer_left - latency_width - 2 * gap,
        )


@dataclass(frozen=True)
class _Row:
    task: OverlayTask
    skip_lines: list[str]
    full_lines: list[str]
    height: int


def _rows(tasks: Sequence[OverlayTask], layout: _Layout, max_height: int) -> list[_Row]:
    """Lay the tasks out; cut answers to one line if there is no room, those that agree first."""
    rows = [_row(task, layout, MAX_ANSWER_LINES) for task in tasks]
    for i in sorted(range(len(tasks)), key=lambda i: tasks[i].agree is False):
        if sum(row.height for row in rows) > max_height:
            rows[i] = _row(tasks[i], layout, 1)
    while rows and sum(row.height for row in rows) > max_height:
        rows.pop()
    return rows


def _row(task: OverlayTask, layout: _Layout, max_lines: int) -> _Row:
    skip, full = _answer_text(task.skip), _answer_text(task.full)
    skip_lines, full_lines = _wrap(skip, layout, max_lines), _wrap(full, layout, max_lines)
    if skip_lines == full_lines and skip != full:  # they differ only in what is cut off
        longest = min(len(skip), len(full))
        same = next((i for i in range(longest) if skip[i] != full[i]), longest)
        skip_lines, full_lines = (
            _wrap('...' + text[max(text.rfind(' ', 0, same) + 1, same - 10) :], layout, max_lines)
            for text in (skip, full)
        )
    text_height = (len(skip_lines) + len(full_lines)) * layout.line
    return _Row(task, skip_lines, full_lines, text_height + layout.row_padding)


def _draw_header(canvas: _Canvas, layout: _Layout, title: str) -> None:
    """Draw the title and, on the right, the legend of the block bars."""
    cell, top = max(3, layout.font_px // 3), layout.gap
    right = layout.width - 2 * layout.gap
    for caption, ran in (('block skipped', False), ('block ran', True)):
        right -= round(_length(caption, layout.font_px))
        canvas.text(right, top, caption, DIM_RGB)
        right -= cell + layout.gap
        canvas.cell(right, top, cell, layout.font_px, ran=ran)
        right -= 3 * layout.gap
    canvas.text(layout.name_left, top, _cut(_printable(title), right, layout.font_px), TEXT_RGB)


def _draw_row(canvas: _Canvas, layout: _Layout, row: _Row, top: int) -> None:
    task = row.task
    differs = task.agree is False
    stripe = {True: AGREES_RGB, False: DIFFERS_RGB, None: SKIPPED_RGB}[task.agree]
    if differs:
        canvas.fill(0, top, layout.width, row.height - layout.gap // 2, DIFFERS_ROW_RGB, 0.9)
    stripe_width = 2 * layout.gap if differs else layout.gap
    canvas.fill(0, top, stripe_width, row.height - layout.gap // 2, stripe, 1.0)

    first, second = top + layout.gap // 2, top + layout.gap // 2 + layout.line
    verdict = {True: 'agrees', False: 'DIFFERS', None: ''}[task.agree]
    verdict_width = round(_length(verdict, layout.font_px)) + layout.font_px + 2 * layout.gap
    verdict_left = layout.name_left + layout.name_width - verdict_width
    if differs:  # bright, so that it stands out in greyscale as well
        canvas.fill(verdict_left, first, verdict_width, layout.line, TEXT_RGB, 1.0)
    mark = {True: canvas.check, False: canvas.triangle, None: canvas.ring}[task.agree]
    mark_top = first + (layout.line - layout.font_px) // 2
    mark(verdict_left + layout.gap // 2, mark_top, layout.font_px)
    verdict_text_left = verdict_left + layout.font_px + layout.gap + layout.gap // 2
    canvas.text(verdict_text_left, first, verdict, DIFFERS_ROW_RGB if differs else TEXT_RGB)
    name = _printable(task.task).replace('_', ' ')
    name_width = layout.name_width - verdict_width - layout.gap
    canvas.text(layout.name_left, first, _cut(name, name_width, layout.font_px), TEXT_RGB)
    _draw_blocks(canvas, layout, task, second)

    line_top = first
    for tag, answer, lines in (
        ('skip', task.skip, row.skip_lines),
        ('full', task.full, row.full_lines),
    ):
        known = answer is not None and answer.in_vocabulary
        answer_rgb = DIM_RGB if answer is None else TEXT_RGB if known else UNKNOWN_RGB
        canvas.text(layout.tag_left, line_top, tag, DIM_RGB)
        latency = '-' if answer is None else f'{answer.total_ms:.0f} ms'
        latency_left = layout.width - 2 * layout.gap - round(_length(latency, layout.font_px))
        canvas.text(latency_left, line_top, latency, TEXT_RGB if answer else DIM_RGB)
        for text in lines:
            canvas.text(layout.answer_left, line_top, text, answer_rgb)
            line_top += layout.line


def _draw_blocks(canvas: _Canvas, layout: _Layout, task: OverlayTask, top: int) -> None:
    """Draw one cell per block in the decoder's order, and how many ran."""
    if task.num_blocks < 1:
        return
    skipped = {block for block in task.skipped_blocks if 0 <= block < task.num_blocks}
    count = f'{task.num_blocks - len(skipped)}/{task.num_blocks}'
    count_width = round(_length(count, layout.font_px))
    canvas.text(layout.name_left + layout.name_width - count_width, top, count, DIM_RGB)
    bar_width = layout.name_width - count_width - layout.gap
    pitch = bar_width // task.num_blocks or bar_width / task.num_blocks
    cell = max(1, int(pitch) - max(1, int(pitch) // 4))
    cell_height = max(2, round(layout.font_px * 0.85))
    cell_top = top + (layout.line - cell_height) // 2
    for block in range(task.num_blocks):
        left = layout.name_left + int(block * pitch)
        canvas.cell(left, cell_top, cell, cell_height, ran=block not in skipped)


class _Canvas:
    """The darkened top of the image: shapes are drawn at once, all text at the end."""

    def __init__(self, background: np.ndarray, font_px: int) -> None:
        self._pixels = background.copy()  # (panel height, W, 3)
        self._font_px = font_px
        self._texts: list[tuple[int, int, str, RGB]] = []
        self.fill(0, 0, background.shape[1], background.shape[0], PANEL_RGB, PANEL_OPACITY)

    def fill(self, left: int, top: int, width: int, height: int, rgb: RGB, opacity: float) -> None:
        region = self._pixels[top : top + height, left : left + width]
        if opacity == 1:
            region[:] = rgb
        else:
            region[:] = cv2.addWeighted(region, 1 - opacity, np.full_like(region, rgb), opacity, 0)

    def cell(self, left: int, top: int, width: int, height: int, *, ran: bool) -> None:
        """Draw one block: a full bright cell if it ran, a low dark stub if it was skipped."""
        stub = max(1, height // 4)
        if ran:
            self.fill(left, top, width, height, RAN_RGB, 1.0)
        else:
            self.fill(left, top + height - stub, width, stub, SKIPPED_RGB, 1.0)

    def check(self, left: int, top: int, size: int) -> None:
        """Draw a green disc with a white check mark: the branches agree."""
        centre = (left + size / 2, top + size / 2)
        self._circle(centre, size / 2, AGREES_RGB, -1)
        points = [(0.26, 0.52), (0.44, 0.7), (0.76, 0.34)]
        self._lines(left, top, size, points, TEXT_RGB, closed=False)

    def triangle(self, left: int, top: int, size: int) -> None:
        """Draw a warning triangle on a bright background: the branches differ."""
        corners = self._fixed_point([(0.5, 0.02), (1.0, 0.94), (0.0, 0.94)], left, top, size)
        cv2.fillPoly(self._pixels, [corners], DIFFERS_RGB, cv2.LINE_AA, shift=4)
        for points in ([(0.5, 0.36), (0.5, 0.62)], [(0.5, 0.78), (0.5, 0.8)]):
            self._lines(left, top, size, points, TEXT_RGB, closed=False)

    def ring(self, left: int, top: int, size: int) -> None:
        """Draw a grey ring: one of the answers is missing."""
        centre = (left + size / 2, top + size / 2)
        self._circle(centre, size * 0.38, DIM_RGB, max(1, size // 9))

    def text(self, left: int, top: int, text: str, rgb: RGB) -> None:
        self._texts.append((left, top, text, rgb))

    def pixels(self) -> np.ndarray:
        """Return everything drawn so far, uint8 of the background's shape."""
        image = Image.fromarray(self._pixels)
        draw = ImageDraw.Draw(image)
        for left, top, text, rgb in self._texts:
            draw.text((left, top), text, font=_font(self._font_px), fill=rgb)
        return np.asarray(image)

    def _circle(self, centre: tuple[float, float], radius: float, rgb: RGB, thickness: int) -> None:
        x, y = round(centre[0] * 16), round(centre[1] * 16)
        radius_fixed = round(radius * 16)
        cv2.circle(self._pixels, (x, y), radius_fixed, rgb, thickness, cv2.LINE_AA, shift=4)

    def _lines(
        self,
        left: int,
        top: int,
        size: int,
        points: list[tuple[float, float]],
        rgb: RGB,
        *,
        closed: bool,
    ) -> None:
        corners = self._fixed_point(points, left, top, size)
        thickness = max(1, round(size / 8))
        cv2.polylines(self._pixels, [corners], closed, rgb, thickness, cv2.LINE_AA, shift=4)

    @staticmethod
    def _fixed_point(
        points: list[tuple[float, float]], left: int, top: int, size: int
    ) -> np.ndarray:
        """Return relative points as OpenCV's coordinates with four fractional bits."""
        absolute = [(left + x * size, top + y * size) for x, y in points]
        return np.round(np.array(absolute) * 16).astype(np.int32)


def _answer_text(answer: OverlayAnswer | None) -> str:
    if answer is None:
        return 'no answer yet'
    text = _printable(answer.text)
    if not text:
        return '(empty answer)'
    return text if answer.in_vocabulary else f'not in the label set: {text}'  # cut at its end


def _printable(text: str) -> str:
    """Return `text` on one line in characters the font has.

    Accents are dropped, a few signs are transliterated, and other characters are written as their
    code points (`\\u4e2d`), so that none vanishes and different ones stay different.
    """
    one_line = ' '.join(text[:MAX_TEXT_CHARS].split())
    letters = []
    for character in unicodedata.normalize('NFKC', one_line).translate(TRANSLITERATED):
        for part in unicodedata.normalize('NFKD', character):
            if ' ' <= part <= '~':
                letters.append(part)
            elif not unicodedata.combining(part):
                letters.append(part.encode('unicode_escape').decode('ascii'))
    return ''.join(letters)


def _wrap(text: str, layout: _Layout, max_lines: int) -> list[str]:
    """Return `text` in at most `max_lines` lines of the answer column; the last may be cut."""
    lines: list[str] = []
    rest = text
    while len(lines) + 1 < max_lines and _length(rest, layout.font_px) > layout.answer_width:
        head = _cut(rest, layout.answer_width, layout.font_px).removesuffix('...')
        if rest[len(head) : len(head) + 1] != ' ':
            head = head.rpartition(' ')[0]  # back to the end of the word before
        if not head:
            break  # one word is wider than the column: cut it below
        lines.append(head)
        rest = rest[len(head) :].lstrip()
    return [*lines, _cut(rest, layout.answer_width, layout.font_px)]


def _cut(text: str, width: int, font_px: int) -> str:
    """Return `text`, cut with an ellipsis if it is wider than `width` pixels."""
    if _length(text, font_px) <= width:
        return text
    kept = bisect.bisect_left(
        range(len(text)), True, key=lambda kept: _length(text[:kept] + '...', font_px) > width
    )  # the first prefix that is too long
    return text[: kept - 1].rstrip() + '...' if kept > 0 else ''


def _length(text: str, font_px: int) -> float:
    return _font(font_px).getlength(text)


@functools.lru_cache(maxsize=8)
def _font(font_px: int) -> ImageFont.FreeTypeFont:
    """Return Pillow's built-in outline font: the same on every machine, without a font file."""
    font = ImageFont.load_default(font_px)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font
