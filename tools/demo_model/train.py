"""Train the embedded demo model: `make demo-model`, or `python tools/demo_model/train.py --help`.

Three seeded stages. State is saved to --work every 100 steps, and a stopped run resumes from it;
remove --work after changing this code.

1. tower: the vision tower learns which classes each patch contains (with a head that is discarded);
2. core: tower, projector and a decoder of CORE_BLOCKS blocks learn the three tasks together;
3. grown: NUM_BLOCKS - CORE_BLOCKS new blocks, initially identities, are inserted between the core's
   blocks, and training continues with all. New blocks are skipped at random now and then, so that
   skipping them costs little. When a core block is skipped, the loss must rise above a margin, so
   that skipping it costs something: more for some blocks than for others.

The blocks of a large model also differ in importance, which is what calibration measures.
"""

from __future__ import annotations

import argparse
import math
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from architecture import (
    CORE_BLOCKS,
    NUM_BLOCKS,
    PATCHES,
    make_model,
    make_processor,
)
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn
from training_scenes import load_training_scenes, render_training_scenes
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from gmskip_ros.datasets.scenes import CLASSES
from gmskip_ros.tasks import TASK_NAMES, make_task

REPOSITORY = Path(__file__).resolve().parents[2]
SAVE_EVERY = 100


@dataclass(frozen=True)
class Stage:
    """Length and rates of one stage."""

    name: str
    num_blocks: int
    steps: int
    batch: int
    learning_rate: float  # the one-cycle peak
    patch_loss: float  # weight of the auxiliary loss
    drop_new: float = 0.0  # probability of skipping the deepest new block; rises with depth
    miss_core: tuple[float, float] | None = None  # range of the minimum loss without a core block


STAGES = (
    Stage('tower', 0, 1200, 64, 2e-3, 1.0),
    Stage('core', CORE_BLOCKS, 3600, 32, 1.5e-3, 0.3),
    Stage('grown', NUM_BLOCKS, 900, 32, 4e-4, 0.1, 0.05, (0.08, 0.3)),
)


def grown_positions() -> list[int]:
    """Return the indices of the core's blocks among NUM_BLOCKS; the others are new."""
    return [round((i + 0.5) * NUM_BLOCKS / CORE_BLOCKS - 0.5) for i in range(CORE_BLOCKS)]


class PackedBatch:
    """The three tasks of an image as one sequence that shares the image's tokens.

    Layout: the prompt up to the image, the image, then one segment per task. A segment attends to
    the image and itself, not to other segments, and its positions start after the image. Each task
    is thus trained on exactly the sequence that it has at inference.
    """

    def __init__(self, processor: LlavaProcessor, texts: list[dict[str, str]]) -> None:
        tokenizer = processor.tokenizer
        self.segments: list[torch.Tensor] = []  # per task (N, length), right-padded
        self.targets: list[torch.Tensor] = []  # the same, -100 where there is no loss
        for name in TASK_NAMES:
            message = [{'type': 'image'}, {'type': 'text', 'text': make_task(name).prompt}]
            text = processor.apply_chat_template(
                [{'role': 'user', 'content': message}], add_generation_prompt=True
            )
            rows = [tokenizer(f'{text} {row[name]}').input_ids + [1] for row in texts]
            image_at = rows[0].index(tokenizer.image_token_id)
            self.prefix = torch.tensor(rows[0][:image_at])  # the same for every task
            num_prompt = len(tokenizer(text).input_ids) - image_at - 1
            longest = max(map(len, rows)) - image_at - 1
            ids = torch.full((len(rows), longest), tokenizer.pad_token_id)
            for i, row in enumerate(rows):
                ids[i, : len(row) - image_at - 1] = torch.tensor(row[image_at + 1 :])
            goal = ids.masked_fill(ids == tokenizer.pad_token_id, -100)
            goal[:, :num_prompt] = -100
            self.segments.append(ids)
            self.targets.append(goal)
        shared = len(self.prefix) + PATCHES**2
        owner = torch.cat(
            [torch.zeros(shared, dtype=torch.long)]
            + [torch.full((ids.shape[1],), i + 1) for i, ids in enumerate(self.segments)]
        )
        sees = (owner[None, :] == 0) | (owner[None, :] == owner[:, None])
        length = len(owner)
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        self.mask = torch.where(sees & causal, 0.0, float('-inf'))[None, None]
        self.positions = torch.cat(
            [torch.arange(shared)] + [shared + torch.arange(ids.shape[1]) for ids in self.segments]
        )[None]
        self.num_shared = shared


class Trainee(nn.Module):
    """The LLaVA with the patch head that is discarded after training."""

    def __init__(self, llava: LlavaForConditionalGeneration) -> None:
        super().__init__()
        self.llava = llava
        self.patch_head = nn.Linear(llava.config.text_config.hidden_size, len(CLASSES))

    def image_tokens(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the projected image tokens: (B, PATCHES**2, width)."""
        hidden = self.llava.model.vision_tower(pixels).last_hidden_state[:, 1:]
        return self.llava.model.multi_modal_projector(hidden)

    def patch_loss(self, tokens: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
        """Return the loss of predicting the classes in each patch from the image tokens."""
        logits = self.patch_head(tokens).float()  # (B, P * P, classes)
        wanted = shares.flatten(1, 2).float() / 255
        return F.binary_cross_entropy_with_logits(logits, wanted, reduction='mean') * 10

    def answer_loss(
        self, tokens: torch.Tensor, batch: PackedBatch, rows: torch.Tensor, dropped: set[int]
    ) -> torch.Tensor:
        """Return the mean cross entropy of all three tasks' answer tokens."""
        decoder = self.llava.model.language_model
        ids = torch.cat([segment[rows] for segment in batch.segments], dim=1)
        goal = torch.cat([target[rows] for target in batch.targets], dim=1)
        prefix = decoder.embed_tokens(batch.prefix)[None].expand(len(rows), -1, -1)
        hidden = torch.cat([prefix, tokens, decoder.embed_tokens(ids)], dim=1)
        rotary = decoder.rotary_emb(hidden, batch.positions)
        for index, block in enumerate(decoder.layers):
            if index not in dropped:
                hidden = block(
                    hidden, attention_mask=batch.mask.to(hidden.dtype), position_embeddings=rotary
                )
        # Position t predicts token t + 1 of the same segment; a segment starts with its prompt.
        answering = torch.zeros_like(goal, dtype=torch.bool)
        answering[:, :-1] = goal[:, 1:] != -100
        chosen = hidden[:, batch.num_shared :][answering]  # (answer tokens, width)
        logits = self.llava.lm_head(decoder.norm(chosen)).float()
        return F.cross_entropy(logits, goal[:, 1:][answering[:, :-1]])


def grow(core: LlavaForConditionalGeneration, model: LlavaForConditionalGeneration) -> None:
    """Copy the core into `model`; its new blocks start as identities."""
    weights = {k: v for k, v in core.state_dict().items() if '.layers.' not in k or 'vision' in k}
    model.load_state_dict(weights, strict=False)
    new, old = model.model.language_model.layers, core.model.language_model.layers
    positions = grown_positions()
    for index, block in enumerate(new):
        if index in positions:
            block.load_state_dict(old[positions.index(index)].state_dict())
        else:
            nn.init.zeros_(block.self_attn.o_proj.weight)
            nn.init.zeros_(block.mlp.down_proj.weight)


def one_cycle(step: int, stage: Stage) -> float:
    """Return the learning rate: linear rise over a tenth of the steps, cosine decay to 1 %."""
    rise = max(1, stage.steps // 10)
    if step < rise:
        return stage.learning_rate * (step + 1) / rise
    done = (step - rise) / max(1, stage.steps - rise)
    return stage.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


def augment(
    images: np.ndarray, shares: np.ndarray, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (pixels 0 to 1 (B, 3, S, S), shares), randomly mirrored and brightened."""
    mirrored = rng.random(len(images)) < 0.5
    images = np.where(mirrored[:, None, None, None], images[:, :, ::-1], images)
    shares = np.where(mirrored[:, None, None, None], shares[:, :, ::-1], shares)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    gain = torch.from_numpy(rng.uniform(0.85, 1.15, (len(images), 1, 1, 1))).float()
    return (pixels * gain).clamp(0, 1), torch.from_numpy(shares)


def average_gradients(trainee: Trainee) -> None:
    """Replace every gradient by its mean over the processes."""
    gradients = [p.grad for p in trainee.parameters() if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def train_stage(
    stage: Stage,
    trainee: Trainee,
    images: np.ndarray,
    shares: np.ndarray,
    batch: PackedBatch,
    folder: Path,
    seed: int,
    progress: Progress,
) -> None:
    """Train one stage in place, resuming from its last saved state if there is one.

    Each process takes its share of each batch; gradients are averaged over the processes.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    image_processor = make_processor().image_processor
    mean = torch.tensor(image_processor.image_mean)[:, None, None]
    std = torch.tensor(image_processor.image_std)[:, None, None]
    optimizer = torch.optim.AdamW(
        trainee.parameters(),
        lr=stage.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=0.02,
        fused=True,
    )
    state_path, first = folder / f'{stage.name}.pt', 0
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        if state.get('seed') != seed:
            sys.exit(
                f'train: {state_path} has a different seed: use that --seed or a different --work'
            )
        trainee.load_state_dict(state['trainee'])
        optimizer.load_state_dict(state['optimizer'])
        first = state['step']
    bar = progress.add_task(stage.name, total=stage.steps, completed=first, loss='')
    core = grown_positions() if stage.drop_new else list(range(stage.num_blocks))
    margins = {}
    if stage.miss_core:
        order = np.random.default_rng(seed).permutation(core).tolist()
        margins = dict(zip(order, np.linspace(*stage.miss_core, len(core)).tolist(), strict=True))
    trainee.train()
    if stage.num_blocks and shutil.which('c++'):  # needed to compile; twice as fast
        for block in trainee.llava.model.language_model.layers:
            block.compile()
    averages, started = np.zeros(3), time.monotonic()
    for step in range(first, stage.steps):
        # Seeded per step, so that a resumed run continues identically.
        rng = np.random.default_rng([seed, STAGES.index(stage), step])
        rows = rng.choice(len(images), stage.batch, replace=False)
        dropped = {
            i
            for i in range(stage.num_blocks)
            if i not in core and rng.random() < stage.drop_new * (i + 1) / stage.num_blocks
        }
        rows = rows[rank::world]
        pixels, wanted = augment(
            images[rows], shares[rows], np.random.default_rng([seed, step, rank])
        )
        for group in optimizer.param_groups:
            group['lr'] = one_cycle(step, stage)
        with torch.autocast('cpu', dtype=torch.bfloat16):
            tokens = trainee.image_tokens((pixels - mean) / std)
            patch_loss = trainee.patch_loss(tokens, wanted)
            answer_loss = torch.zeros(())
            if stage.num_blocks:
                answer_loss = trainee.answer_loss(tokens, batch, torch.from_numpy(rows), dropped)
            missed = torch.zeros(())
            if margins and step % 2:
                block = core[step // 2 % len(core)]
                without = trainee.answer_loss(tokens, batch, torch.from_numpy(rows), {block})
                missed = F.relu(margins[block] - without)
        loss = stage.patch_loss * patch_loss + answer_loss + missed
        if not torch.isfinite(loss):
            sys.exit(f'train: loss is {loss.item()} at step {step} of {stage.name}: lower its rate')
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(trainee)
        nn.utils.clip_grad_norm_(trainee.parameters(), 1.0)
        optimizer.step()
        averages = 0.98 * averages + 0.02 * np.array(
            [patch_loss.item(), answer_loss.item(), missed.item()]
        )
        shown = averages / (1 - 0.98 ** (step - first + 1))
        losses = 'patches {:.3f}, answers {:.4f}, missed {:.4f}'.format(*shown)
        progress.update(bar, advance=1, loss=losses)
        if rank == 0 and ((step + 1) % SAVE_EVERY == 0 or step + 1 == stage.steps):
            aside = state_path.with_suffix('.part')
            state = {'trainee': trainee.state_dict(), 'optimizer': optimizer.state_dict()}
            torch.save({**state, 'step': step + 1, 'seed': seed}, aside)
            aside.replace(state_path)
            if not sys.stdout.isatty():
                pace = (time.monotonic() - started) / (step + 1 - first)
                where = f'{stage.name} {step + 1}/{stage.steps}'
                print(f'{where}: {losses}, {pace:.2f} s a step', flush=True)


def save_checkpoint(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, out: Path
) -> None:
    """Write the checkpoint in Hugging Face format, float16; replace an old one at the end."""
    aside = out.with_name(out.name + '.part')
    shutil.rmtree(aside, ignore_errors=True)
    model.set_attn_implementation('sdpa')
    model.to(torch.float16).save_pretrained(aside)
    processor.save_pretrained(aside)
    card = out / 'README.md'
    if card.exists():
        shutil.copy(card, aside / 'README.md')
    for path in aside.iterdir():
        path.chmod(0o644)
    shutil.rmtree(out, ignore_errors=True)
    aside.replace(out)


def train(rank: int, args: argparse.Namespace, rendezvous: str) -> None:
    """Run all stages as process `rank` of `args.processes`; rank 0 saves the checkpoint."""
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    dist.init_process_group('gloo', init_method=rendezvous, rank=rank, world_size=args.processes)
    images, shares, texts = load_training_scenes(args.work / 'scenes', args.scenes)
    processor = make_processor()
    sizes = (len(processor.tokenizer), processor.tokenizer.image_token_id)
    batch = PackedBatch(processor, texts)
    core = Trainee(make_model(CORE_BLOCKS, *sizes))
    grown = Trainee(make_model(NUM_BLOCKS, *sizes))
    for trainee in (core, grown):
        # Compiled, it trains faster on a CPU than PyTorch's fused attention.
        trainee.llava.set_attn_implementation('eager')
    shown = TextColumn('{task.completed}/{task.total} {task.fields[loss]}')
    columns = (TextColumn('{task.description}'), BarColumn(), shown, TimeRemainingColumn())
    with Progress(*columns, disable=rank > 0 or not sys.stdout.isatty()) as progress:
        for stage in STAGES:
            trainee = grown if stage.num_blocks == NUM_BLOCKS else core
            if trainee is grown:
                grow(core.llava, grown.llava)
                grown.patch_head.load_state_dict(core.patch_head.state_dict())
            train_stage(stage, trainee, images, shares, batch, args.work, args.seed, progress)
    if rank == 0:
        save_checkpoint(grown.llava, processor, args.out)
        print(f'saved {args.out}')
    dist.destroy_process_group()


def main() -> None:
    """Render scenes, train, save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        '--out',
        type=Path,
        default=REPOSITORY / 'gmskip_ros/assets/demo',
        help='folder of the checkpoint',
    )
    parser.add_argument(
        '--work',
        type=Path,
        default=REPOSITORY / 'build/demo_model',
        help='folder of the scenes and the saved state',
    )
    parser.add_argument('--scenes', type=int, default=30_000, help='to train on')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--processes', type=int, default=2, help='one per core')
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    render_training_scenes(args.work / 'scenes', args.scenes, args.processes)
    with tempfile.TemporaryDirectory() as scratch:
        rendezvous = (Path(scratch) / 'rendezvous').as_uri()
        try:
            mp.spawn(train, (args, rendezvous), nprocs=args.processes)
        except mp.ProcessExitedException as error:  # it has printed the reason
            sys.exit(error.exit_code)


if __name__ == '__main__':
    main()
