"""Options that several commands share."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gmskip_ros.calibration.methods.method import Method
from gmskip_ros.calibration.methods.registry import all_options
from gmskip_ros.errors import UserError
from gmskip_ros.files import FolderLock
from gmskip_ros.numbers import percent_hint, share_text_hint
from gmskip_ros.pipeline.timing import ISOLATED, TIMINGS
from gmskip_ros.skipping import PHASES
from gmskip_ros.tasks import DEFAULT_MATCH, MATCHES, PRESENCE, TASK_NAMES

if TYPE_CHECKING:
    from gmskip_ros.calibration.distributed import Ranks
    from gmskip_ros.datasets import Dataset
    from gmskip_ros.vlm import CalibrationEngine

SCORED_TASKS = (*TASK_NAMES, PRESENCE)
TASKS = (*SCORED_TASKS, 'generic', 'joint')
TARGET_TASKS = ('single_object', PRESENCE)
LABEL_OPTIONS = ('labels', 'match', 'synonyms')
MOST_SPARSITIES = 1000


def split_list(option: str, text: str) -> list[str]:
    """Return the parts between commas. Raises UserError for empty or repeated ones."""
    parts = [part.strip() for part in text.split(',')]
    if not all(parts) or len(set(parts)) < len(parts):
        raise UserError(f'{option} {text!r}: give different names separated by commas')
    return parts


def positive_int(text: str) -> int:
    """Return a whole number of at least 1, as the type of an argument."""
    return _at_least(1, text)


def whole_number(text: str) -> int:
    """Return a whole number of at least 0, as the type of an argument."""
    return _at_least(0, text)


def _at_least(least: int, text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < least:
        raise argparse.ArgumentTypeError(f'{text!r} is not a whole number of at least {least}')
    return int(text)


def positive_float(text: str) -> float:
    """Return a number above 0 and below a million, as the type of an argument."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f'{text!r} is not a number above 0')
    return value


def share(text: str) -> float:
    """Return a number, such as a ratio or a sparsity, as the type of an argument."""
    try:
        return float(text)
    except ValueError:
        hint = share_text_hint(text)
        raise argparse.ArgumentTypeError(f'{text!r} is not a number{hint}') from None


# Of load_vlm; the node's parameters have the same names.
LOAD_OPTIONS = (
    'model',
    'device',
    'dtype',
    'quantization',
    'threads',
    'image_fit',
    'max_image_tokens',
    'chat_template',
)


DEMO_MODEL_HELP = "'demo' (default), a folder or a hub id"


def add_load_options(
    parser: argparse._ActionsContainer,
    *,
    has_defaults: bool = True,
    model: str | None = 'demo',
    model_help: str = DEMO_MODEL_HELP,
) -> None:
    """Add the options for the model and how it is loaded; see load_vlm.

    Without defaults, an option that is not given is None. `model` is the default of --model.
    """

    def add(option: str, default: str | int | None, help: str, **kwargs: Any) -> None:
        parser.add_argument(option, default=default if has_defaults else None, help=help, **kwargs)

    add('--model', model, model_help)
    add('--device', 'auto', 'auto (default), cpu or cuda:N')
    add('--dtype', 'auto', 'auto (default), float32, float16 or bfloat16')
    add(
        '--quantization',
        'none',
        "how the weights of the decoder's linear layers are stored: none (default), int8 or int4",
    )
    add(
        '--threads',
        0,
        "CPU threads that compute an answer (default: 0, PyTorch's own choice)",
        type=whole_number,
        metavar='N',
    )
    add(
        '--image-fit',
        'auto',
        "how an image becomes the model's square: checkpoint, pad, squash, or auto (default): pad "
        'where the checkpoint would crop a camera frame, else checkpoint',
    )
    add(
        '--max-image-tokens',
        0,
        'cut an image into tiles that make at most N tokens (default: 0, no limit)',
        type=int,
        metavar='N',
    )
    add(
        '--chat-template',
        None,
        "Jinja text, or a file that contains it (default: the checkpoint's own)",
        metavar='FILE',
    )


def load_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return load_vlm's keyword arguments from the options of `add_load_options`."""
    return {
        'quantization': args.quantization,
        'threads': args.threads,
        'image_fit': args.image_fit,
        'max_image_tokens': args.max_image_tokens,
        'chat_template': args.chat_template,
    }


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for the model, its device, and how much it does at once."""
    add_load_options(parser)
    parser.add_argument(
        '--batch-size',
        type=int,
        default=256,
        metavar='N',
        help='most sequences that go through a block together (default: 256)',
    )
    parser.add_argument(
        '--memory-gib',
        type=float,
        default=4.0,
        metavar='G',
        help='memory of each process for images, as much again for a batch, and with evopress as '
        'much again for what the full model answers; less is slower (default: 4)',
    )
    parser.add_argument('--no-progress', action='store_true', help='show no progress')


def add_dataset_options(parser: argparse.ArgumentParser, images: int = 1000) -> None:
    """Add the options for the images; `images` is the default of how many."""
    parser.add_argument(
        '--dataset',
        required=True,
        metavar='PATH',
        help=f'{DATASET_HELP} (docs/calibrate.md lists them)',
    )
    parser.add_argument(
        '--split',
        help="split of the dataset, if it has several; Karpathy's may be joined: train+restval",
    )
    add_captions_option(parser)
    add_images_dir_option(parser)
    add_images_options(parser, images)


DATASET_HELP = (
    "COCO's, CODA's or POPE's folder, a .json file in COCO's format, or a file of questions"
)


def add_images_dir_option(parser: argparse.ArgumentParser) -> None:
    """Add the option for images that are not where the dataset's layout has them."""
    parser.add_argument(
        '--images-dir',
        metavar='DIR',
        help='the folder that the images are in (default: found beside the file)',
    )


def open_dataset_of(args: argparse.Namespace, ranks: Ranks, split: str | None = None) -> Dataset:
    """Return the dataset of the options of add_dataset_options; `split` in place of --split.

    Of several processes the first one reads it, and passes on what is chosen of it.
    """
    from gmskip_ros.calibration.choosing import OF_FIRST
    from gmskip_ros.datasets import open_dataset

    if ranks.rank != 0:
        return OF_FIRST
    return open_dataset(
        args.dataset,
        split=args.split if split is None else split,
        captions=args.captions,
        images_dir=args.images_dir,
    )


def add_captions_option(parser: argparse.ArgumentParser) -> None:
    """Add the option for captions from a different place than the dataset's own."""
    parser.add_argument(
        '--captions',
        metavar='FILE',
        help="a different captions file, Karpathy's dataset_coco.json, the folder CODA-LM, or, for "
        'questions without answers, a .jsonl file of them (question_id, text)',
    )


def add_images_options(parser: argparse.ArgumentParser, images: int = 1000) -> None:
    """Add the options for how many images are used (`images`: the default), and which."""
    parser.add_argument(
        '--images',
        type=int,
        default=images,
        metavar='N',
        help=f'most images to use (default: {images}); with a target, as many without it are added',
    )
    parser.add_argument(
        '--seed',
        type=int,
        default=0,
        metavar='S',
        help='determines which images are chosen (default: 0)',
    )


def add_method_options(parser: argparse._ActionsContainer) -> None:
    """Add the options that only some methods have; None if not given."""
    for option in all_options().values():
        kind: dict[str, Any] = {'action': 'store_const', 'const': False}
        if option.default is not True:
            kind = {'choices': option.choices or None, 'metavar': option.metavar}
        parser.add_argument(option.flag, dest=option.name, default=None, help=option.help, **kind)


def add_force_option(parser: argparse._ActionsContainer) -> None:
    """Add the option to search although the score cannot guide it."""
    parser.add_argument(
        '--force',
        action='store_true',
        help='search although the score cannot guide a search; the skip list then says so',
    )


def given_method_options(
    args: argparse.Namespace, methods: Iterable[Method], given: str
) -> dict[str, Any]:
    """Return the values of those of these options that were given, by name.

    Raises UserError for one that none of the methods has; `given` is how they were asked for.
    """
    own = {option.name for method in methods for option in method.options}
    options = {}
    for option in all_options().values():
        value = getattr(args, option.name)
        if value is None:
            continue
        if option.name not in own:
            raise UserError(f'{option.flag} has no effect with {given}: remove it')
        options[option.name] = option.parse(value) if isinstance(value, str) else value
    return options


def add_task_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for questions and scores; each command adds its own --target."""
    parser.add_argument(
        '--task',
        required=True,
        choices=TASKS,
        help="'presence': is a label in the image, yes or no; 'generic': the questions of a .jsonl "
        "file; 'joint': the tasks of --joint-tasks at once",
    )
    parser.add_argument(
        '--joint-tasks',
        metavar='TASK,TASK',
        help=f'with --task joint: which tasks, of {", ".join(SCORED_TASKS)} (default: the first '
        'three)',
    )
    parser.add_argument(
        '--metric',
        help="the score (default: the task's first); for several tasks, separated by commas",
    )
    parser.add_argument(
        '--labels',
        metavar='car,bus',
        help="a label set's name, or labels (default: the dataset's own)",
    )
    add_match_option(parser)
    parser.add_argument(
        '--synonyms', action='store_true', help='deprecated: the same as --match synonyms'
    )
    parser.add_argument('--prompt', help="your own question (default: the task's)")
    parser.add_argument(
        '--max-new-tokens',
        type=int,
        metavar='N',
        help="length limit of an answer (default: the task's own)",
    )


def add_match_option(parser: argparse._ActionsContainer) -> None:
    """Add the option for how answers are read."""
    parser.add_argument(
        '--match',
        choices=MATCHES,
        help='how an answer is read: strict: it is the label; forms: or its plural or singular; '
        'synonyms: or a synonym; content: it mentions the label or a synonym and does not negate '
        f'it (default: {DEFAULT_MATCH})',
    )


def add_timing_option(parser: argparse._ActionsContainer) -> None:
    """Add the option for what the two branches' answers may share."""
    parser.add_argument(
        '--timing',
        choices=TIMINGS,
        default=ISOLATED,
        help='isolated (default): every answer is made, and timed, as if alone; shared: least time '
        'for the frame, with the same answers and no speed-up, since they share work',
    )


def match_of(args: argparse.Namespace) -> str:
    """Return how answers are read, by --match or --synonyms. Raises UserError if they differ."""
    if not args.synonyms:
        return args.match or DEFAULT_MATCH
    if args.match not in (None, 'synonyms'):
        raise UserError(f'--match {args.match} contradicts --synonyms: remove --synonyms')
    print('gmskip: warning: --synonyms is deprecated: use --match synonyms', file=sys.stderr)
    return 'synonyms'


def shared_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of calibration's SharedSettings, except target and latency_images.

    Raises UserError for values out of range and for options that have no effect on the task.
    """
    if args.task == 'joint' and (args.prompt, args.max_new_tokens) != (None, None):
        raise UserError(
            '--prompt and --max-new-tokens need a single task: remove them with --task joint'
        )
    if args.task in ('generic', 'captioning', PRESENCE):
        for option in ('match', 'synonyms') if args.task == PRESENCE else LABEL_OPTIONS:
            if getattr(args, option) not in (None, False):
                raise UserError(
                    f'--{option} needs a task that is answered with labels: remove it with --task '
                    f'{args.task}'
                )
    for name, value in (('--images', args.images), ('--batch-size', args.batch_size)):
        if value < 1:
            raise UserError(f'{name} {value} must be at least 1')
    if not 0 < args.memory_gib < float('inf'):
        raise UserError(f'--memory-gib {args.memory_gib:g} must be a number above 0')
    if args.target is not None and args.task not in TARGET_TASKS:
        raise UserError(
            f'--target is for --task {" and ".join(TARGET_TASKS)}: remove it with {args.task}'
        )
    if args.max_new_tokens is not None and args.max_new_tokens < 1:
        raise UserError(f'--max-new-tokens {args.max_new_tokens} must be at least 1')
    labels = None if args.labels is None else args.labels.split(',')
    return {
        'task': args.task,
        'joint_tasks': joint_tasks(args),
        'metric': args.metric,
        'prompt': args.prompt,
        'labels': labels and tuple(label.strip() for label in labels),
        'match': match_of(args),
        'max_new_tokens': args.max_new_tokens,
        'images': args.images,
        'seed': args.seed,
        'batch_size': args.batch_size,
        'memory_gib': args.memory_gib,
        'command': 'gmskip ' + shlex.join(args.arguments),
    }


def joint_tasks(args: argparse.Namespace) -> tuple[str, ...]:
    """Return the tasks of a joint run. Raises UserError."""
    if args.joint_tasks is None:
        return TASK_NAMES
    if args.task != 'joint':
        raise UserError(f'--joint-tasks is for --task joint: remove it with --task {args.task}')
    names = split_list('--joint-tasks', args.joint_tasks)
    if len(names) < 2 or not set(names) <= set(SCORED_TASKS):
        raise UserError(
            f'--joint-tasks {args.joint_tasks!r}: give two or more of {",".join(SCORED_TASKS)}'
        )
    return tuple(name for name in SCORED_TASKS if name in names)


def make_folder(folder: Path) -> Path:
    """Make the folder of --out and return it. Raises UserError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'--out {folder}: {error.strerror}: give a different folder') from error
    return folder


def lock_folder(folder: Path, lock: FolderLock) -> None:
    """Keep other processes out of the folder of --out. Raises UserError."""
    try:
        lock.acquire(folder, '--out ')
    except OSError as error:
        raise UserError(f'--out {folder}: {error.strerror}: give a different folder') from error


@contextmanager
def locked(folder: Path) -> Iterator[Path]:
    """Make the folder of --out, and keep other processes out of it in the block. Raises UserError.

    Yields the folder.
    """
    with FolderLock() as lock:
        lock_folder(make_folder(folder), lock)
        yield folder


def load_model(
    args: argparse.Namespace, ranks: Ranks, on_progress: Callable[[str], None]
) -> CalibrationEngine:
    """Connect the processes and return the model, on this process's GPU if there are several."""
    from gmskip_ros.vlm import load_vlm

    device = args.device
    if device == 'auto' and ranks.world_size > 1:
        import torch

        device = f'cuda:{ranks.local_rank}' if torch.cuda.is_available() else 'cpu'
    vlm = load_vlm(args.model, device, args.dtype, on_progress, **load_options(args))
    ranks.connect(vlm.device)
    return vlm


def parse_phases(text: str) -> tuple[str, ...]:
    """Return the phases of 'prefill+decode', in their usual order. Raises UserError."""
    names = [name.strip() for name in text.split('+')]
    if not set(names) <= set(PHASES) or len(set(names)) < len(names):
        raise UserError(f'--phases {text!r}: use prefill, decode or prefill+decode')
    return tuple(phase for phase in PHASES if phase in names)


def parse_protect(text: str) -> tuple[int, int]:
    """Return the two numbers of '1,1'. Raises UserError."""
    parts = [part.strip() for part in text.split(',')]
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
        raise UserError(
            f'--protect {text!r}: give how many of the first and of the last blocks stay: 1,1'
        )
    return int(parts[0]), int(parts[1])


def parse_sparsities(text: str) -> tuple[float, ...]:
    """Return the numbers of '0.05:0.5:0.05' (both ends included) or '0.25,0.5', ascending.

    Raises UserError for anything else and for numbers outside [0, 1).
    """
    parts = text.split(':' if ':' in text else ',')
    try:
        numbers = [Decimal(part.strip()) for part in parts]
    except InvalidOperation:
        numbers = []
    usage = f'--sparsity {text!r}: give START:STOP:STEP, such as 0.05:0.5:0.05, or 0.25,0.5'
    usage += next(filter(None, map(share_text_hint, parts)), '')
    if not numbers or not all(number.is_finite() for number in numbers):
        raise UserError(usage)
    if ':' in text:
        if len(numbers) != 3 or numbers[2] <= 0 or numbers[0] > numbers[1]:
            raise UserError(usage)
        start, stop, step = numbers
        if stop - start > step * MOST_SPARSITIES:
            raise UserError(f'--sparsity {text!r}: more than {MOST_SPARSITIES} steps: give fewer')
        numbers = [start + step * i for i in range(int((stop - start) / step) + 1)]
    for number in numbers:
        if not 0 <= number < 1:
            hint = percent_hint(float(number)) or ': give smaller shares'
            raise UserError(f'--sparsity {text!r}: {number} is not in [0, 1){hint}')
    return tuple(sorted({float(number) for number in numbers}))
