"""What a process uses of the machine, as Linux tells it from outside."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

KIB_PER_MIB = 1024.0


@dataclass(frozen=True)
class ProcessUse:
    """One moment of a process."""

    own_mib: float  # anonymous, shared-memory and swapped pages: what it has allocated
    rss_mib: float  # resident, with the pages of files, which the kernel takes back when it likes
    pss_mib: float  # resident, shared pages counted in part; NaN where the kernel does not tell
    open_files: int  # file handles
    threads: int


def process_use(pid: int) -> ProcessUse:
    """Return what the process uses now. Raises OSError when it has ended."""
    process = Path('/proc') / str(pid)
    status = _fields(process / 'status')
    if 'VmRSS' not in status:
        raise ProcessLookupError(f'process {pid} has ended')
    own_kib = sum(status.get(name, 0) for name in ('RssAnon', 'RssShmem', 'VmSwap'))
    try:
        pss_mib = _fields(process / 'smaps_rollup')['Pss'] / KIB_PER_MIB
    except (OSError, KeyError):
        pss_mib = float('nan')
    return ProcessUse(
        own_mib=own_kib / KIB_PER_MIB,
        rss_mib=status['VmRSS'] / KIB_PER_MIB,
        pss_mib=pss_mib,
        open_files=sum(1 for _ in (process / 'fd').iterdir()),
        threads=status['Threads'],
    )


def _fields(path: Path) -> dict[str, int]:
    """Return the lines 'Name:  123 kB' of a file that have a number."""
    fields = {}
    for line in path.read_text(errors='replace').splitlines():
        name, _, value = line.partition(':')
        words = value.split()
        if words and words[0].isdigit():
            fields[name] = int(words[0])
    return fields
