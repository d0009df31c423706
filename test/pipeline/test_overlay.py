"""What the overlay shows, checked by the place and colour of what is drawn."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from gmskip_ros.pipeline.overlay import (
    AGREES_RGB,
    DIFFERS_RGB,
    MAX_PANEL_FRACTION,
    RAN_RGB,
    SKIPPED_RGB,
    OverlayAnswer,
    OverlayTask,
    draw_overlay,
)

SIZES = [(480, 640), (1080, 1920), (240, 320)]  # (H, W)
CAPTION = 'A red bus drives along a wet street while two pedestrians wait near a traffic light. '


def road(height: int = 480, width: int = 640) -> np.ndarray:
    """Return a textured grey image that contains none of the overlay's colours."""
    noise = np.random.default_rng(0).integers(60, 100, (height, width, 1), np.uint8)
    return np.repeat(noise, 3, axis=2)


def row(
    skip: str | None = 'bus',
    full: str | None = 'bus',
    agree: bool | None = True,
    *,
    task: str = 'single_object',
    skipped: tuple[int, ...] = (29, 16, 27),
    num_blocks: int = 32,
    total_ms: float = 512.0,
    known: bool = True,
) -> OverlayTask:
    skip_answer = None if skip is None else OverlayAnswer(task, 'skip', skip, total_ms, known)
    full_answer = None if full is None else OverlayAnswer(task, 'full', full, total_ms)
    return OverlayTask(task, skip_answer, full_answer, agree, skipped, num_blocks)


def three_rows(agree: bool | None = True) -> list[OverlayTask]:
    return [
        row(agree=agree),
        row('bus, car', 'bus', agree, task='multi_object'),
        row(CAPTION * 3, CAPTION, agree, task='captioning'),
    ]


def is_colour(picture: np.ndarray, rgb: tuple[int, int, int]) -> np.ndarray:
    return (picture == rgb).all(axis=2)


def changed_box(a: np.ndarray, b: np.ndarray) -> tuple[int, int, int, int]:
    """Return (top, left, bottom, right) of the pixels in which two images differ."""
    ys, xs = np.nonzero((a != b).any(axis=2))
    assert ys.size, 'the pictures are the same'
    return int(ys.min()), int(xs.min()), int(ys.max()) + 1, int(xs.max()) + 1


def tall_and_low_cells(picture: np.ndarray) -> tuple[list[int], list[int]]:
    """Return the left edges of the only bar's cells: of blocks that ran, and of skipped ones."""

    def left_edges(rgb: tuple[int, int, int]) -> list[int]:
        mask = is_colour(picture, rgb)[:, : picture.shape[1] // 2].astype(np.uint8)
        count, _, stats, _ = cv2.connectedComponentsWithStats(mask)
        return sorted(int(stats[i, cv2.CC_STAT_LEFT]) for i in range(1, count))

    return left_edges(RAN_RGB), left_edges(SKIPPED_RGB)


@pytest.mark.parametrize(('height', 'width'), SIZES)
@pytest.mark.parametrize('agree', [True, False, None])
def test_draws_on_a_copy_and_leaves_the_road_alone(height, width, agree):
    image = road(height, width)
    before = image.copy()
    picture = draw_overlay(image, three_rows(agree), title='frame 7')
    assert picture.shape == image.shape
    assert picture.dtype == np.uint8
    assert (image == before).all()
    assert not np.shares_memory(picture, image)
    first_free_row = int(height * MAX_PANEL_FRACTION)
    assert (picture[first_free_row:] == image[first_free_row:]).all()
    assert (picture[:first_free_row] != image[:first_free_row]).mean() > 0.5


@pytest.mark.parametrize(('height', 'width'), SIZES)
def test_every_task_has_a_row_of_its_own(height, width):
    image = road(height, width)
    stripes = is_colour(draw_overlay(image, three_rows(True)), AGREES_RGB)[:, 0]
    assert int(np.diff(stripes.astype(int), prepend=0).clip(min=0).sum()) == 3


@pytest.mark.parametrize(('height', 'width'), SIZES)
def test_answers_stand_in_their_own_lines_and_column(height, width):
    image = road(height, width)
    reference = draw_overlay(image, [row('bus', 'bus')])
    skip_box = changed_box(reference, draw_overlay(image, [row('cat', 'bus')]))
    full_box = changed_box(reference, draw_overlay(image, [row('bus', 'cat')]))
    assert skip_box[2] <= full_box[0], 'the skip answer stands above the full answer'
    assert skip_box[1] == full_box[1], 'both begin at the same column'
    white = reference[skip_box[0] : skip_box[2], skip_box[1] : skip_box[3]].min(axis=2)
    assert white.max() > 200, 'the answer is bright on the dark panel'

    latency_box = changed_box(reference, draw_overlay(image, [row(total_ms=777.0)]))
    assert latency_box[1] > width * 0.8
    text_box = changed_box(reference, draw_overlay(image, [row('bus', 'W' * 300)]))
    longest_latency = draw_overlay(image, [row(total_ms=88888.0)])
    latency_left = changed_box(longest_latency, reference)[1]
    assert text_box[3] <= latency_left, 'a long answer does not run into the latency'


def test_each_branch_has_its_own_latency_and_colour():
    image = road()

    def drawn(skip_ms: float = 100.0, full_ms: float = 100.0, **known: bool) -> np.ndarray:
        skip = OverlayAnswer('t', 'skip', 'bus', skip_ms, known.get('skip', True))
        full = OverlayAnswer('t', 'full', 'bus', full_ms, known.get('full', True))
        return draw_overlay(image, [OverlayTask('t', skip, full, True, (), 32)])

    reference = drawn()
    skip_line = changed_box(reference, drawn(skip_ms=777.0))
    full_line = changed_box(reference, drawn(full_ms=777.0))
    assert skip_line[2] <= full_line[0]
    for line, other in ((skip_line, drawn(skip=False)), (full_line, drawn(full=False))):
        top, _, bottom, _ = changed_box(reference, other)
        assert abs(top - line[0]) <= 3 and abs(bottom - line[2]) <= 4


def test_long_answers_are_wrapped_and_then_cut():
    image = road()

    def panel_bottom(text: str) -> int:
        return changed_box(image, draw_overlay(image, [row(text, 'bus')]))[2]

    assert panel_bottom('bus') < panel_bottom(CAPTION * 2)
    assert panel_bottom(CAPTION * 2) == panel_bottom(CAPTION * 100)
    cut, longer = (draw_overlay(image, [row(CAPTION * n, 'bus')]) for n in (2, 3))
    assert (cut == longer).all(), 'what is cut off leaves no trace'


@pytest.mark.parametrize('size', [(480, 640), (1080, 1920)])
@pytest.mark.parametrize('head', [CAPTION * 9, 'W' * 900 + '-', ''])
def test_answers_that_differ_look_different(size, head):
    """Even if they share more text than there is room for."""
    image = road(*size)
    answers = [(head + 'dog', head + 'dog'), (head + 'dog', head + 'cat')]
    alike, differing = (draw_overlay(image, [row(a, b, False)]) for a, b in answers)
    top, left, bottom, right = changed_box(draw_overlay(image, [row('', '', False)]), differing)
    middle = (top + bottom) // 2
    height = min(middle - top, bottom - middle)
    one = differing[middle - height : middle, left:right]
    other = differing[middle : middle + height, left:right]
    assert (alike != differing).any() and (one != other).any()


def test_answers_that_differ_keep_their_room():
    """Three long answers do not fit in two lines each: the one that differs is cut last."""
    image = road()

    def heights(agree: tuple[bool, ...]) -> list[int]:
        tasks = [row(CAPTION * 3, CAPTION * 3, ok) for ok in agree]
        stripe = draw_overlay(image, tasks, title='frame 7')[:, 0]
        is_stripe = (stripe == AGREES_RGB).all(axis=1) | (stripe == DIFFERS_RGB).all(axis=1)
        edges = np.flatnonzero(np.diff(is_stripe.astype(int), prepend=0, append=0))
        return [int(end - start) for start, end in edges.reshape(-1, 2)]

    for at in range(3):
        tall = heights(tuple(i != at for i in range(3)))
        assert len(tall) == 3
        assert tall[at] == max(tall) > min(tall)


def test_one_word_wider_than_the_column_is_cut():
    image = road()
    wide, wider = (draw_overlay(image, [row('W' * n, 'bus')]) for n in (200, 300))
    assert (wide == wider).all()


@pytest.mark.parametrize(('height', 'width'), SIZES)
def test_disagreement_is_visible_at_a_glance(height, width):
    image = road(height, width)
    agrees, differs, open_ = (draw_overlay(image, [row(agree=a)]) for a in (True, False, None))
    assert is_colour(agrees, AGREES_RGB).sum() and not is_colour(agrees, DIFFERS_RGB).sum()
    assert is_colour(differs, DIFFERS_RGB).sum() and not is_colour(differs, AGREES_RGB).sum()
    for colour in (AGREES_RGB, DIFFERS_RGB):
        assert not is_colour(open_, colour).sum()
    panel = changed_box(image, agrees)
    rows = slice(panel[2] // 2, panel[2] - 3)
    tinted = differs[rows].astype(int)[..., 0] - differs[rows].astype(int)[..., 2]
    assert np.median(tinted) > 30, 'the whole row of a disagreement has its own background'


def test_disagreement_is_visible_without_colour():
    """In grey (the strictest colour blindness), mark and word still distinguish the verdicts."""
    image = road()
    panels = []
    for agree in (True, False, None):
        grey = cv2.cvtColor(draw_overlay(image, [row(agree=agree)]), cv2.COLOR_RGB2GRAY)
        panels.append(grey[:60, 120:210] > 140)  # bright shapes beside the task's name
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert (panels[a] != panels[b]).sum() > 40


@pytest.mark.parametrize(('height', 'width'), SIZES[:2])
def test_disagreement_catches_the_eye_in_grey(height, width):
    """One task of three differs: in grey its row has by far the largest bright patch."""
    tasks = three_rows(True)
    tasks[1] = row('bus, car', 'bus', False, task='multi_object')
    picture = draw_overlay(road(height, width), tasks, title='frame 7')
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    bright = cv2.morphologyEx(  # no letter is as broad as this
        (grey > 200).astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, height // 60), np.uint8)
    )
    rows = np.nonzero(bright[:, : width // 3].any(axis=1))[0]
    stripe = np.nonzero(is_colour(picture, DIFFERS_RGB)[:, 0])[0]
    assert rows.size > height * 0.02
    assert stripe.min() <= rows.min() and rows.max() <= stripe.max()


@pytest.mark.parametrize(('height', 'width'), SIZES)
@pytest.mark.parametrize('skipped', [(), (0,), (31,), (29, 16, 27, 21), tuple(range(32))])
def test_block_bar_has_one_cell_per_block_in_order(height, width, skipped):
    ran, left_out = tall_and_low_cells(draw_overlay(road(height, width), [row(skipped=skipped)]))
    assert len(ran) == 32 - len(skipped)
    assert len(left_out) == len(skipped)
    cells = sorted([(x, False) for x in ran] + [(x, True) for x in left_out])
    assert {i for i, (_, is_skipped) in enumerate(cells) if is_skipped} == set(skipped)


def test_block_indices_outside_the_model_are_not_drawn():
    image = road()
    plain = draw_overlay(image, [row(skipped=(3,))])
    assert (draw_overlay(image, [row(skipped=(3, -1, 32, 400))]) == plain).all()


def test_a_full_answer_that_does_not_exist_yet():
    image = road()
    pending = draw_overlay(image, [row('bus', None, None)])
    answered = draw_overlay(image, [row('bus', 'bus', None)])
    box = changed_box(pending, answered)
    line = pending[box[0] : box[2], box[1] : box[3]]
    assert line.max() > 150, 'a placeholder is drawn'
    assert line.max() < answered[box[0] : box[2], box[1] : box[3]].max(), 'and it is dimmer'


def test_answer_outside_the_label_set_is_marked():
    image = road()
    known = draw_overlay(image, [row('giraffe')])
    unknown = draw_overlay(image, [row('giraffe', known=False)])
    assert changed_box(known, unknown)[3] < 560


@pytest.mark.parametrize('rest', ['', CAPTION * 3])
def test_the_mark_stands_before_the_words_and_is_never_cut_off(rest):
    image = road()

    def left_of_words(known: bool) -> int:
        cat, dog = (draw_overlay(image, [row(word + rest, known=known)]) for word in ('cat', 'dog'))
        return changed_box(cat, dog)[1]

    assert left_of_words(known=False) > left_of_words(known=True) + 60


def test_title_is_drawn_above_the_rows():
    image = road()
    box = changed_box(draw_overlay(image, [row()]), draw_overlay(image, [row()], title='front'))
    assert box[2] <= 25


def test_accents_are_dropped_and_other_scripts_spelled_as_code_points():
    image = road()

    def drawn(text: str) -> np.ndarray:
        return draw_overlay(image, [row(text, 'bus')])

    assert (drawn('café — naïve') == drawn('cafe - naive')).all()
    assert (drawn('中') == drawn('\\u4e2d')).all()
    assert (drawn('中') != drawn('国')).any()
    assert (drawn('中') != drawn('?')).any()


@pytest.mark.parametrize(
    'text',
    ['', ' ', '\n\t\r', '\x00\x07', '\u202eabc', '🚗🚗', '\ud800', 'a' * 9999, 'é' * 99, '%s{}\\'],
)
@pytest.mark.parametrize('size', [(480, 640), (240, 320), (60, 80)])
def test_strange_text_never_raises(text, size):
    image = road(*size)
    tasks = [row(text, text, False, task=text, total_ms=float('nan')), row(total_ms=1e300)]
    assert draw_overlay(image, tasks, title=text).shape == image.shape


@pytest.mark.parametrize(
    'size', [(1, 1), (0, 0), (0, 640), (480, 0), (1, 4000), (4000, 1), (20, 640), (40, 500), (7, 9)]
)
def test_tiny_and_odd_images_keep_their_shape(size):
    image = road(*size)
    picture = draw_overlay(image, three_rows(False), title='frame 7')
    assert picture.shape == image.shape
    first_free_row = int(size[0] * MAX_PANEL_FRACTION)
    assert (picture[first_free_row:] == image[first_free_row:]).all()


@pytest.mark.parametrize('num_blocks', [0, 1, 80, 1000])
def test_any_number_of_blocks(num_blocks):
    picture = draw_overlay(road(), [row(skipped=(), num_blocks=num_blocks)])
    assert (picture[300:] == road()[300:]).all()
    if num_blocks in (1, 80):
        assert (
            len(
                tall_and_low_cells(
                    draw_overlay(road(1080, 1920), [row(skipped=(), num_blocks=num_blocks)])
                )[0]
            )
            == num_blocks
        )


def test_without_tasks_the_image_is_unchanged():
    assert (draw_overlay(road(), []) == road()).all()


def test_read_only_and_strided_images_are_accepted():
    image = np.repeat(road(), 2, axis=1)[:, ::2]
    image.flags.writeable = False
    assert (draw_overlay(image, [row()]) == draw_overlay(road(), [row()])).all()


@pytest.mark.parametrize(('shape', 'dtype'), [((4, 4), 'u1'), ((4, 4, 4), 'u1'), ((4, 4, 3), 'f4')])
def test_other_arrays_are_refused_by_name(shape, dtype):
    bad = np.zeros(shape, dtype)
    with pytest.raises(ValueError, match=r'expected uint8 of shape \(H, W, 3\), got'):
        draw_overlay(bad, [row()])
