"""Whether datasets may have images in common, judged by their names."""

from __future__ import annotations

import re

_SCENES = re.compile(r'scenes-(\d+)-(\d+)')  # first seed, number of scenes
_COCO = re.compile(r'coco-(?:train|val|(karpathy)-.*)(2014|2017|)')
_KARPATHY = re.compile(r'(.+)-karpathy-(.+)')  # whose file, splits joined by +
_LVIS = 'lvis'
_CODA = 'coda-'
_POPE, _COCO_TOO = 'pope-', ('pope-', 'coco-')  # POPE asks about COCO's images
_DISJOINT = {'coda-val', 'coda-test'}


def may_share_pictures(one: str, other: str) -> bool:
    """Return whether datasets with these names (Dataset.name) may have images in common.

    Scenes are compared by their seeds. COCO's splits of one year are disjoint, and so are
    Karpathy's; between those and between the years, the same images were split differently. LVIS
    splits COCO's images once more, and POPE asks about some. Of CODA, only val and test are known
    to be disjoint.
    """
    if one == other:
        return True
    if (a := _SCENES.fullmatch(one)) and (b := _SCENES.fullmatch(other)):
        return int(a[1]) < int(b[1]) + int(b[2]) and int(b[1]) < int(a[1]) + int(a[2])
    if (a := _KARPATHY.fullmatch(one)) and (b := _KARPATHY.fullmatch(other)):
        return a[1] == b[1] and not {*a[2].split('+')}.isdisjoint(b[2].split('+'))
    if _LVIS in one or _LVIS in other:
        return all(_LVIS in name or _COCO.fullmatch(name) for name in (one, other))
    if (a := _COCO.fullmatch(one)) and (b := _COCO.fullmatch(other)):
        return a.groups() != b.groups()
    if one.startswith(_POPE) or other.startswith(_POPE):
        return one.startswith(_COCO_TOO) and other.startswith(_COCO_TOO)
    return one.startswith(_CODA) and other.startswith(_CODA) and {one, other} != _DISJOINT
