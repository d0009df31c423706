"""The executable `dual_vlm_node`; it handles signals before the slow imports."""

from __future__ import annotations

import json
import sys
import textwrap

from gmskip_ros.signals import StopSignals

USAGE = """\
usage: dual_vlm_node [--help]
           [--ros-args [-r NAME:=NAME ...] [--params-file FILE] [-p NAME:=VALUE ...]]

Answer questions about camera frames with a LLaVA model, with and without skipped blocks, and
publish answers and latencies. Subscribes to ~/input/image (remap it to the camera), publishes
~/output/..., ~/debug/... and /diagnostics. Parameters and their defaults:
"""


def main() -> int:
    """Run the node until Ctrl-C or SIGTERM; return the exit status."""
    if '--help' in sys.argv[1:] or '-h' in sys.argv[1:]:
        print(USAGE + '\n'.join(_parameter_lines()))
        return 0
    stop = StopSignals().listen()
    from gmskip_ros.ros.node import run

    return run(stop)


def _parameter_lines() -> list[str]:
    from gmskip_ros.pipeline.parameters import SPECS

    return [
        f'  {name} (default: {json.dumps(spec.default)})\n'
        + textwrap.fill(spec.description, 96, initial_indent='      ', subsequent_indent='      ')
        for name, spec in SPECS.items()
    ]


if __name__ == '__main__':
    sys.exit(main())
