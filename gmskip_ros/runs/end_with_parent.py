"""Run a command that gets SIGTERM when its parent process ends, even by `kill -9`. Linux only.

    python -I -S end_with_parent.py PARENT_PID COMMAND [ARGUMENT ...]

A program of its own, because Python code between fork and exec can deadlock in a process with
threads. It imports nothing of gmskip_ros and becomes the command: process id and group stay.
The kernel watches the thread that started it: start it from the parent's main thread.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
    """Set the signal, then become the command."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    # If the kernel refuses, the command still runs, without this protection.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGTERM), 0, 0, 0)
    if os.getppid() != parent:  # it ended before the signal was set
        sys.exit(1)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.exit(f'{command[0]}: {error.strerror}')


if __name__ == '__main__':
    main()
