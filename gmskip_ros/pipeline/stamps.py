"""What the header stamps of camera frames say about the camera and the clocks."""

from __future__ import annotations

OLD_S = 10.0
FUTURE_S = 1.0
SINCE_BOOT_S = 10 * 365 * 86_400.0  # a stamp of less counts from a boot, not from 1970
MEANINGS = {
    'since_boot': 'the camera counts from its own start, not from 1970',
    'old': 'a bag played without --clock and use_sim_time, a frame that is published again and '
    'again, or clocks that differ',
    'future': "the camera's clock is ahead of this machine's, or use_sim_time is set on one side "
    'only',
}


def check_stamp(stamp_ns: int, now_ns: int) -> str:
    """Compare a stamp with the clock it should be of: 'ok' or one of MEANINGS; 'unknown' if now=0.

    Simulated time is 0 until the first /clock message.
    """
    age_s = (now_ns - stamp_ns) / 1e9
    if not now_ns:
        return 'unknown'
    if age_s < -FUTURE_S:
        return 'future'
    if age_s <= OLD_S:
        return 'ok'
    if stamp_ns < SINCE_BOOT_S * 1e9 <= now_ns:
        return 'since_boot'
    return 'old'


def age_text(stamp_ns: int, now_ns: int) -> str:
    """Return the age of a stamp for people: '7200 s old', '3 s in the future'."""
    age_s = (now_ns - stamp_ns) / 1e9
    return f'{age_s:.0f} s old' if age_s >= 0 else f'{-age_s:.0f} s in the future'


class StampWatch:
    """Notices that frames arrive and are never due. Times are ns of a steady clock."""

    def __init__(self) -> None:
        self._arrived_ns = 0
        self._newest_ns: int | None = None  # stamp
        self._advanced_at_ns = 0
        self._due_ns = 0  # stamp of the last due frame
        self._due_at_ns = 0

    def note(self, stamp_ns: int, now_ns: int, *, is_due: bool) -> None:
        """Note a frame that arrived; `is_due` as the gate has judged it."""
        self._arrived_ns = now_ns
        is_first = self._newest_ns is None
        if is_due or self._newest_ns is None or stamp_ns > self._newest_ns:
            self._newest_ns, self._advanced_at_ns = stamp_ns, now_ns
        if is_due or is_first:
            self._due_ns, self._due_at_ns = stamp_ns, now_ns

    def problem(self, period_ns: int, after_ns: int) -> str:
        """Return what lasts for more than `after_ns` up to the last frame that arrived; else ''.

        Slow stamps (a bag played slowly) are no problem: they advance, and less than two periods
        pass between due frames.
        """
        if self._newest_ns is None:
            return ''
        unchanged_ns = self._arrived_ns - self._advanced_at_ns
        if unchanged_ns > after_ns:
            return (
                f'images arrive, but their stamp {self._newest_ns / 1e9:.3f} has not advanced for '
                f'{unchanged_ns / 1e9:.0f} s: check the driver that stamps them, or its /clock'
            )
        not_due_ns = self._arrived_ns - self._due_at_ns
        if not_due_ns > after_ns and self._newest_ns - self._due_ns >= 2 * period_ns:
            return (
                f'images arrive and their stamps advance, but none was due for '
                f'{not_due_ns / 1e9:.0f} s: restart the node and report this'
            )
        return ''
