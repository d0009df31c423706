"""Which datasets may have pictures in common, as far as their names tell."""

from __future__ import annotations

import re

_SCENES = re.compile(r'scenes-(\d+)-(\d+)')  # first seed, number of scenes
_COCO = re.compile(r'coco-(?:train|val|(karpathy)-.*)(2014|2017|)')
_CODA = 'coda-'
_APART = {'coda-val', 'coda-test'}


def may_share_pictures(one: str, other: str) -> bool:
    """Return whether datasets of these names (Dataset.name) may have a picture in common.

    Scenes are told apart by their seeds. COCO's splits of one year are apart, and so are
    Karpathy's; between them and between the years the same pictures were dealt out anew. Of CODA,
    only val and test are known to be apart.
    """
    if one == other:
        return True
    if (a := _SCENES.fullmatch(one)) and (b := _SCENES.fullmatch(other)):
        return int(a[1]) < int(b[1]) + int(b[2]) and int(b[1]) < int(a[1]) + int(a[2])
    if (a := _COCO.fullmatch(one)) and (b := _COCO.fullmatch(other)):
        return a.groups() != b.groups()
    return one.startswith(_CODA) and other.startswith(_CODA) and {one, other} != _APART
