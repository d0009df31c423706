"""What a shared frame cannot do without, pass by pass, from the architecture: see packed.py.

The prefix (system text and image) runs once per skip set, and only once through the blocks before
the first one in which two sets differ. The skip branch decodes all tasks together. The full branch
verifies its answers, all right, in one pass. Lower bounds, as in architecture.py.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from gmskip_ros.benchmarks.architecture import Cost, DecoderShape


def shared_frame_costs(
    shape: DecoderShape,
    skipped: Mapping[str, Collection[int]],
    lengths: Mapping[str, int],
    prefix: int,
    suffix: int,
) -> list[Cost]:
    """Return the cost of each pass for both branches' answers, by task of `lengths` tokens.

    skipped: the skip branch's blocks by task. prefix, suffix: tokens that all prompts begin with,
    and that follow in each.
    """
    done: set[tuple[int, frozenset[int]]] = set()  # where the prefix has been: see packed.Place

    def prefill(left_out: frozenset[int], rows: int, logits: int) -> Cost:
        places = {
            (block, frozenset(other for other in left_out if other < block))
            for block in range(shape.num_blocks)
            if block not in left_out
        }
        new = len(places - done)
        done.update(places)
        return _pass_cost(shape, prefix, new, [len(places)] * rows, len(places), logits)

    sets = {task: frozenset(blocks) for task, blocks in skipped.items()}
    passes = [
        prefill(each, suffix * count, count)
        for each in sorted(set(sets.values()), key=sorted)
        for count in [sum(other == each for other in sets.values())]
    ]
    for step in range(1, max(lengths.values())):  # the last token chosen is never run
        active = [sets[task] for task, length in lengths.items() if length > step]
        runs = [shape.num_blocks - len(each) for each in active]
        read = shape.num_blocks - len(frozenset.intersection(*active))
        passes.append(_pass_cost(shape, prefix, 0, runs, read, len(active)))
    drafts = sum(length - 1 for length in lengths.values())
    logits = len(lengths) + drafts
    return [*passes, prefill(frozenset(), suffix * len(lengths) + drafts, logits)]


def _pass_cost(
    shape: DecoderShape, prefix: int, new: int, runs: Sequence[int], read: int, logits: int
) -> Cost:
    """Return the cost of one pass.

    new: blocks that the prefix runs in it, in the last of them only keys and values. runs: how many
    blocks each other row runs; each row sees the prefix. read: blocks whose weights are read.
    """
    head = shape.hidden * shape.vocabulary
    multiplications = logits * head + sum(runs) * shape.block_weights
    if new:
        multiplications += prefix * ((new - 1) * shape.block_weights + shape.stored_weights)
    if shape.counts_attention:
        pairs = sum(runs) * prefix + max(0, new - 1) * prefix * (prefix + 1) // 2
        multiplications += 2 * pairs * shape.query
    moved = head + read * 2 * shape.stored * prefix
    return Cost(2 * multiplications, shape.number_bytes * moved + read * shape.block_bytes)
