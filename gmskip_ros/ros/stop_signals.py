"""SIGINT and SIGTERM as a flag that the main loop looks at."""

from __future__ import annotations

import signal
import threading

STOP_POLL_S = 0.1  # how often a main loop looks, at least


def stop_event_on_signals() -> threading.Event:
    """
    Return an event that SIGINT and SIGTERM set from now on; for the main thread.

    For use with `SignalHandlerOptions.NO`: rclpy's own handlers shut the context in the middle of
    whatever is published, and raise KeyboardInterrupt anywhere.
    """
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    return stop
