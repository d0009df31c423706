"""`gmskip <command>`: each command is a module of this package."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from gmskip_ros import __version__
from gmskip_ros.errors import UserError
from gmskip_ros.machine import tune_cpu

COMMANDS = (
    'ask',
    'benchmark',
    'calibrate',
    'compare',
    'demo',
    'doctor',
    'evaluate',
    'redundancy',
    'replay',
    'scenes',
    'skiplist',
    'soak',
)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `gmskip` with the parsers of all commands."""
    parser = argparse.ArgumentParser(
        prog='gmskip',
        description='LLaVA answers with all Transformer blocks and with some skipped.',
    )
    parser.add_argument('--version', action='version', version=f'gmskip {__version__}')
    subparsers = parser.add_subparsers(dest='command', required=True, metavar='command')
    for name in COMMANDS:
        importlib.import_module(f'gmskip_ros.cli.{name}').add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; expected errors are one line on stderr."""
    tune_cpu()
    try:
        args = build_parser().parse_args(argv)
        args.arguments = list(sys.argv[1:] if argv is None else argv)  # for reports
        return args.func(args)
    except UserError as error:
        return _print_error(str(error))
    except ModuleNotFoundError as error:
        module = (error.name or '').partition('.')[0]
        if module == 'gmskip_ros':
            raise
        return _print_error(
            f'{module} is not installed for {sys.executable}: see "Install" in docs/vehicle.md'
        )
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of the pipe has exited
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _print_error(message: str) -> int:
    print(f'gmskip: error: {message}', file=sys.stderr)
    return 2


if __name__ == '__main__':
    sys.exit(main())
