"""What of a dataset's annotations a model can see, where it does not see whole images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from gmskip_ros.datasets.sample import Dataset, Instance, Sample, labels_and_main_object

WHOLE = (0.0, 0.0, 1.0, 1.0)


def within_view(
    dataset: Dataset, visible_box: Callable[[float, float], tuple[float, float, float, float]]
) -> Dataset:
    """Return the dataset without the objects that lie wholly outside the view.

    `visible_box(width, height)` returns left, top, right and bottom of what a model sees of an
    image of this size (pixels), as fractions of it. Labels and main objects are those of the
    objects in view. Captions, questions, and labels without boxes are left as they are. If labels
    of images were left out, the last of the dataset's notes says how many.
    """
    order = {label: index for index, label in enumerate(dataset.labels)}
    labels = outside = 0
    samples: list[Sample] = []
    for sample in dataset.samples:
        labels += len(sample.labels)
        box = visible_box(*sample.size) if sample.size and sample.instances else WHOLE
        if sample.size and box != WHOLE:
            seen = tuple(each for each in sample.instances if _overlaps(each, box, sample.size))
            present, main_object = labels_and_main_object(seen, order)
            outside += len(sample.labels) - len(present)
            sample = replace(sample, instances=seen, labels=present, main_object=main_object)
        samples.append(sample)
    notes = dataset.notes
    if outside:
        notes += (
            f'{outside} of {labels} labels of images lie wholly outside what the model sees of '
            'them and count as absent; image_fit pad shows whole images',
        )
    return replace(dataset, samples=tuple(samples), notes=notes, labels_outside_view=outside)


def _overlaps(
    instance: Instance, box: tuple[float, float, float, float], size: tuple[float, float]
) -> bool:
    """Return whether a part of the object's box is inside `box` (fractions of the image)."""
    (left, top, right, bottom), (width, height) = box, size
    return (
        instance.left < right * width
        and instance.right > left * width
        and instance.top < bottom * height
        and instance.bottom > top * height
    )
