"""`gmskip ask`: both branches' answers about one image, without ROS."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gmskip_ros.cli.options import (
    add_load_options,
    add_match_option,
    add_timing_option,
    load_options,
)
from gmskip_ros.errors import UserError
from gmskip_ros.files import DEMO_FOLDER
from gmskip_ros.numbers import numbers_in
from gmskip_ros.pipeline.timing import ISOLATED, SHARED
from gmskip_ros.tasks import DEFAULT_MATCH, TASK_NAMES

if TYPE_CHECKING:
    import numpy as np

    from gmskip_ros.skipping import SkipList
    from gmskip_ros.tasks import Task
    from gmskip_ros.vlm import Answer, ImageFeatures, SkipSet, Vlm

SAMPLE = DEMO_FOLDER / 'sample.jpg'
DEMO_WARNING = (
    'the model demo only knows the driving scenes that this package renders: its answer about any '
    'other image means nothing; give a model with --model'
)
DEFAULT_TASK = 'captioning'
DEFAULT_MAX_NEW_TOKENS = 64  # for --prompt


def add_parser(subparsers: Any) -> None:
    """Add the command and its options to `gmskip`."""
    parser = subparsers.add_parser(
        'ask', help='ask a model about one image, with and without skipped blocks'
    )
    parser.add_argument(
        'photo',
        nargs='?',
        default=str(SAMPLE),
        help='image file (JPEG, PNG, ...; default: the rendered driving scene that ships)',
    )
    add_load_options(parser)
    question = parser.add_mutually_exclusive_group()
    question.add_argument('--task', choices=TASK_NAMES, help=f'default: {DEFAULT_TASK}')
    question.add_argument('--prompt', help='a question of your own')
    parser.add_argument(
        '--labels',
        metavar='car,bus',
        help='for single_object and multi_object: a label set, or labels (default: coda)',
    )
    add_match_option(parser)
    skipped = parser.add_mutually_exclusive_group()
    skipped.add_argument(
        '--skip-list',
        metavar='FILE',
        help="a file or a shipped list's name (default: the demo model's for the task, else none)",
    )
    skipped.add_argument('--skip', metavar='29,16', help='blocks to skip, 0-based')
    parser.add_argument(
        '--operating-point',
        help='of the skip list: high_performance (default), high_sparsity or a number of blocks',
    )
    parser.add_argument('--max-new-tokens', type=int, help="default: the task's")
    add_timing_option(parser)
    parser.add_argument('--json', action='store_true', help='print one JSON object')
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Answer, print a table or JSON, and return 0."""
    image = read_photo(args.photo)
    task, prompt, max_new_tokens = choose_question(args)
    skip, skip_list = choose_skip_set(args, task)

    from rich.console import Console
    from rich.markup import escape

    from gmskip_ros.vlm import load_vlm
    from gmskip_ros.vlm.engine import settings_in_use

    with Console(stderr=True).status('starting') as status:

        def show_step(step: str) -> None:
            status.update(escape(step))  # a model's name may look like markup

        vlm = load_vlm(args.model, args.device, args.dtype, show_step, **load_options(args))
        warnings = list(vlm.warnings)
        if vlm.name == 'demo' and Path(args.photo) != SAMPLE:
            warnings.append(DEMO_WARNING)
        if skip_list is not None:
            warnings += skip_list.warnings_for(
                **settings_in_use(vlm),
                prompt=prompt,
                max_new_tokens=max_new_tokens,
                task=task.name if task else None,
                match=task.match if task else None,
            )
        for warning in warnings:
            print(f'gmskip: warning: {warning}', file=sys.stderr)
        skip.check(vlm.num_blocks)
        status.update('warming up')  # the first pass includes the start of the libraries
        features = vlm.encode(image)
        if args.timing == SHARED:
            answer_shared(vlm, features, prompt, skip, min(2, max_new_tokens))
        else:
            vlm.answer(features, prompt, skip, min(2, max_new_tokens))
        status.update('answering')
        features = vlm.encode(image)
        shared_ms: dict[str, float] = {}
        if args.timing == SHARED:
            answers, shared_ms = answer_shared(vlm, features, prompt, skip, max_new_tokens)
        else:
            answers = {
                'skip': vlm.answer(features, prompt, skip, max_new_tokens),
                'full': vlm.answer(features, prompt, (), max_new_tokens),
            }
    report = make_report(args, vlm, task, prompt, skip, answers, shared_ms, features.num_tokens)
    if args.json:
        print(json.dumps(report, indent=2, ensure_ascii=False))
    else:
        print_report(report)
    return 0


def answer_shared(
    vlm: Vlm, features: ImageFeatures, prompt: str, skip: SkipSet, max_new_tokens: int
) -> tuple[dict[str, Answer], dict[str, float]]:
    """Return both branches' answers with the least time, and what is in none of their times.

    The latter (ms) by branch, as its part of the frame. The skip answer is a draft of full's.
    """
    from gmskip_ros.vlm import FrameQuestion

    questions = [
        FrameQuestion(prompt, skip, max_new_tokens),
        FrameQuestion(prompt, max_new_tokens=max_new_tokens),
    ]
    frame = vlm.share_frame(features, questions)
    [skip_answer] = frame.answer([0])
    skip_ms = frame.shared_ms
    [full_answer] = frame.answer([1], drafts={1: [skip_answer.token_ids]})
    answers = {'skip': skip_answer, 'full': full_answer}
    return answers, {'skip': skip_ms, 'full': frame.shared_ms - skip_ms}


def read_photo(path: str) -> np.ndarray:
    """Return the image with its EXIF orientation applied: uint8 RGB (H, W, 3)."""
    import numpy as np
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as photo:
            if photo.mode.startswith(('I', 'F')):  # Pillow would clip values above 255
                raise ValueError(f'mode {photo.mode} has more than 8 bits per channel')
            return np.array(ImageOps.exif_transpose(photo).convert('RGB'))
    except Exception as error:  # Pillow's decoders raise many types on broken files
        reason = getattr(error, 'strerror', None) or str(error).partition('\n')[0]
        raise UserError(
            f'cannot read image {path!r} ({reason}): give a JPEG, PNG or other 8-bit image'
        ) from error


def choose_question(args: argparse.Namespace) -> tuple[Task | None, str, int]:
    """Return the task (None with --prompt), the prompt and max_new_tokens."""
    from gmskip_ros.tasks import make_task

    if args.labels is not None and (args.task or DEFAULT_TASK) == 'captioning':
        raise UserError('--labels is for --task single_object and multi_object: remove it')
    if args.match is not None and (args.prompt is not None or args.task in (None, 'captioning')):
        raise UserError('--match is for --task single_object and multi_object: remove it')
    if args.prompt is None:
        labels = ['coda'] if args.labels is None else args.labels.split(',')
        task = make_task(
            args.task or DEFAULT_TASK,
            labels=[label.strip() for label in labels],
            max_new_tokens=args.max_new_tokens,
            match=args.match or DEFAULT_MATCH,
        )
        return task, task.prompt, task.max_new_tokens
    length = DEFAULT_MAX_NEW_TOKENS if args.max_new_tokens is None else args.max_new_tokens
    if length < 1:
        raise UserError(f'--max-new-tokens {length} must be at least 1')
    return None, args.prompt, length


def choose_skip_set(args: argparse.Namespace, task: Task | None) -> tuple[SkipSet, SkipList | None]:
    """Return what the skip branch skips, and the skip list it comes from, if any."""
    from gmskip_ros.skipping import load_skip_list
    from gmskip_ros.vlm import SkipSet

    if args.skip is not None:
        if args.operating_point is not None:
            raise UserError('--operating-point is for skip lists: remove it or --skip')
        parts = [part.strip() for part in args.skip.split(',') if part.strip()]
        try:
            blocks = [int(part) for part in parts]
        except ValueError:
            raise UserError(
                f'--skip {args.skip!r} is not a list of block indices such as 29,16'
            ) from None
        return SkipSet.of(blocks), None
    name = args.skip_list
    if name is None and args.model == 'demo' and task is not None:
        name = f'demo_{task.name}'
    if name is None:
        if args.operating_point is not None:
            raise UserError('--operating-point is for skip lists: add --skip-list')
        remedy = 'add --skip 29,16 or --skip-list FILE'
        print(f'gmskip: warning: no blocks are skipped: {remedy}', file=sys.stderr)
        return SkipSet(), None
    skip_list = load_skip_list(name)
    return skip_list.skip_set_at(args.operating_point or 'high_performance'), skip_list


def make_report(
    args: argparse.Namespace,
    vlm: Vlm,
    task: Task | None,
    prompt: str,
    skip: SkipSet,
    answers: dict[str, Answer],
    shared_ms: dict[str, float],
    image_tokens: int,
) -> dict[str, Any]:
    """Return the report of one image as JSON values; times in milliseconds.

    `shared_ms`: by branch, with the timing `shared`; there is no speed-up then.
    """
    from gmskip_ros.vlm import SkipSet

    parsed = {branch: task.parse(answer.text) for branch, answer in answers.items()} if task else {}
    branches = {}
    for branch, answer in answers.items():
        skip_set = skip if branch == 'skip' else SkipSet()
        branches[branch] = {
            'answer': parsed[branch].text if task else answer.text,
            'raw_text': answer.text,
            'tokens': len(answer.token_ids),
            'confidence_mean': answer.confidence.mean,
            'confidence_min': answer.confidence.min,
            'skipped_blocks': list(skip_set.blocks),
            'skipped_in': skip_set.manner,
            'sparsity': len(skip_set.blocks) / vlm.num_blocks,
            **asdict(answer.timing),
        }
        if args.timing == SHARED:
            branches[branch]['shared_ms'] = shared_ms[branch]
    report: dict[str, Any] = {
        'photo': args.photo,
        'model': vlm.name,
        'device': vlm.device,
        'dtype': vlm.dtype,
        'quantization': vlm.quantization,
        'num_blocks': vlm.num_blocks,
        'image_fit': vlm.image_fit,
        'image_tokens': image_tokens,
        'task': task.name if task else None,
        'match': task.match if task else None,
        'prompt': prompt,
        'rendered_prompt': vlm.render_prompt(prompt),
        'timing': args.timing,
        'branches': branches,
        'agree': answers['skip'].token_ids == answers['full'].token_ids,
    }
    if args.timing == ISOLATED:
        report['speed_up'] = answers['full'].timing.total_ms / answers['skip'].timing.total_ms
    if task:
        agreement = task.agreement(
            parsed['skip'],
            parsed['full'],
            answers['skip'].token_ids,
            answers['full'].token_ids,
        )
        report['agree'] = agreement.agree
        report['agreement'] = agreement.values
    return report


def print_report(report: dict[str, Any]) -> None:
    """Print the report of one image as a table."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from gmskip_ros.report.formatting import demo_alert

    console = Console()
    console.print(
        f'{report["model"]}, {report["num_blocks"]} blocks, '
        f'{numbers_in(report["dtype"], report["quantization"])} on {report["device"]}',
        markup=False,
    )
    console.print(report['prompt'], markup=False)
    table = Table('', *report['branches'])
    results = list(report['branches'].values())
    table.add_row('answer', *(escape(result['answer']) for result in results))
    if any(result['raw_text'] != result['answer'] for result in results):
        table.add_row('raw text', *(escape(result['raw_text']) for result in results))
    skipped = [', '.join(map(str, result['skipped_blocks'])) for result in results]
    table.add_row('blocks skipped', *(blocks or 'none' for blocks in skipped))
    if any(result['skipped_in'] for result in results):
        table.add_row('skipped in', *(result['skipped_in'] for result in results))
    table.add_row('tokens', *(str(result['tokens']) for result in results))
    is_shared = report['timing'] == SHARED
    phases = ('preprocess', 'vision', 'prefill', 'decode', 'total')
    for phase in (*phases, 'shared') if is_shared else phases:
        table.add_row(f'{phase} (ms)', *(f'{result[f"{phase}_ms"]:.1f}' for result in results))
    console.print(table)
    values = ''.join(f', {name} {value:.2f}' for name, value in report.get('agreement', {}).items())
    verdict = 'agree' if report['agree'] else 'differ'
    speed = 'no speed-up with --timing shared: full starts from what skip has computed'
    if not is_shared:
        speed = f'skipping is {report["speed_up"]:.2f} times as fast (vision is counted in both)'
    console.print(f'the answers {verdict}{values}; {speed}', highlight=False)
    for line in demo_alert(report):
        console.print(line, highlight=False)
