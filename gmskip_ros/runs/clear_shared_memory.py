"""Remove what a process and its children leave in /dev/shm if it is killed. Linux only.

    python -I -S clear_shared_memory.py PID

A program of its own, because a killed process can remove nothing. It notes the segments of Fast DDS
that these processes have mapped until its standard input ends: after the word `done` it removes
nothing; without it the process was killed, and segments go once the children have ended.
"""

import contextlib
import os
import re
import select
import signal
import sys
import time

POLL_S = 0.5
CHILDREN_END_WITHIN_S = 20.0
SEGMENT = re.compile(r'/dev/shm/fastrtps_[0-9a-f]{16}$', re.M)  # a process's own; ports are shared


def main() -> None:
    """Watch, then clear."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    parent, children, segments = int(sys.argv[1]), set(), set()
    heard = b''
    while True:
        children.update(_children(parent))
        for pid in (parent, *children):
            segments.update(SEGMENT.findall(_read(f'/proc/{pid}/maps')))
        if select.select([sys.stdin], [], [], POLL_S)[0]:
            received = os.read(sys.stdin.fileno(), 64)
            heard += received
            if not received:
                break
    if b'done' in heard:
        return
    deadline = time.monotonic() + CHILDREN_END_WITHIN_S
    while any(os.path.exists(f'/proc/{pid}/fd/0') for pid in children - {os.getpid()}):
        if time.monotonic() > deadline:
            return
        time.sleep(POLL_S)
    for path in segments:
        for file in (path, f'{path}_el'):  # the segment, and the lock that says it is in use
            with contextlib.suppress(OSError):
                os.unlink(file)


def _children(pid: int) -> set[int]:
    threads = []
    with contextlib.suppress(OSError):
        threads = os.listdir(f'/proc/{pid}/task')
    lists = (_read(f'/proc/{pid}/task/{thread}/children') for thread in threads)
    return {int(child) for text in lists for child in text.split()} - {os.getpid()}


def _read(path: str) -> str:
    try:
        with open(path, encoding='utf-8', errors='replace') as file:
            return file.read()
    except OSError:
        return ''


if __name__ == '__main__':
    main()
