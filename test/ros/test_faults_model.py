"""Checkpoints that cannot be used; docs/faults.md has the table.

One node, whose checkpoint is a folder that is broken in one way after another. It stays in the
state error; `~/enable` off and on makes it read the folder again. Code in a checkpoint would leave
a trace if it ran.
"""

from __future__ import annotations

import importlib.resources
import json
import os
import pickle
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from fault_probe import ONE_TASK, FaultProbe
from node_probe import picture, quick_command
from ros_process import RosProcess, ros_node

from gmskip_ros.ros.conversions import rgb_to_image

WEIGHTS = 'model.safetensors'
DEMO = Path(str(importlib.resources.files('gmskip_ros') / 'assets/demo'))


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint; it does not exist at first."""
    return tmp_path_factory.mktemp('models') / 'model'


@pytest.fixture(scope='module')
def probe(folder: Path) -> Iterator[FaultProbe]:
    command = quick_command(
        model=folder,
        **ONE_TASK,
        **{'skip_list.single_object': 'demo_single_object'},
    )
    with RosProcess(command, warm=True) as process, ros_node() as node:
        probe = FaultProbe(node, process, '/dual_vlm', '/dual_vlm/input/image')
        health = probe.wait_for_state('error')
        assert 'is neither a folder nor a hub id' in health['reason']
        yield probe
        assert process.stop(signal.SIGTERM) == 0
        assert 'Traceback' not in process.output() and 'terminate' not in process.output()


def put(folder: Path, change: Callable[[Path], None] = lambda folder: None) -> None:
    """Put the demo model into the folder and change something about it."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(DEMO, folder)
    change(folder)


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def wrong_family(folder: Path) -> None:
    edit_json(folder / 'config.json', model_type='blip-2')


def broken_config(folder: Path) -> None:
    (folder / 'config.json').write_text('{"model_type": "llava"')


def no_tokenizer(folder: Path) -> None:
    (folder / 'tokenizer.json').write_text('{}')


def no_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def truncated_weights(folder: Path) -> None:
    os.truncate(folder / WEIGHTS, 1_000_000)


def weights_of_another_model(folder: Path) -> None:
    """A tensor is renamed: the model lacks one."""
    content = (folder / WEIGHTS).read_bytes()
    assert content.count(b'model.norm.weight') == 1
    content = content.replace(b'model.norm.weight', b'model.morn.weight')
    (folder / WEIGHTS).write_bytes(content)


def pickle_instead(folder: Path) -> None:
    """A pickle, which runs code when it is loaded."""
    (folder / WEIGHTS).unlink()
    argument = str(trace(folder)).encode()
    content = b'\x80\x02cos\nmkdir\nX' + len(argument).to_bytes(4, 'little') + argument + b'\x85R.'
    pickle.loads(content)
    trace(folder).rmdir()  # it did run
    (folder / 'pytorch_model.bin').write_bytes(content)


def trace(folder: Path) -> Path:
    return folder.parent / 'code_of_the_checkpoint_ran'


def remote_code(name: str, **classes: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        edit_json(folder / name, auto_map={key: f'evil.{value}' for key, value in classes.items()})
        (folder / 'evil.py').write_text(f'import os\nos.mkdir({str(trace(folder))!r})\n')

    return change


def too_large(folder: Path) -> None:
    """4 TB of weights, as a sparse file."""
    numbers = 10**12
    header = {'x': {'dtype': 'F32', 'shape': [numbers], 'data_offsets': [0, 4 * numbers]}}
    text = json.dumps(header).encode()
    with (folder / WEIGHTS).open('wb') as file:
        file.write(len(text).to_bytes(8, 'little') + text)
        file.truncate(8 + len(text) + 4 * numbers)


def nan_weights(folder: Path) -> None:
    """The weights of one norm of the decoder are NaN."""
    content = bytearray((folder / WEIGHTS).read_bytes())
    start = 8 + int.from_bytes(content[:8], 'little')
    header = json.loads(content[8:start])
    (entry,) = [header[name] for name in header if name.endswith('model.norm.weight')]
    first, last = entry['data_offsets']
    content[start + first : start + last] = b'\xff' * (last - first)  # NaN in every format
    (folder / WEIGHTS).write_bytes(content)


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        pytest.param(broken_config, ['config.json', 'cannot be read'], id='broken_config'),
        pytest.param(wrong_family, ["type 'blip-2'", 'LLaVA-1.5'], id='wrong_family'),
        pytest.param(no_tokenizer, ['the tokenizer cannot be used'], id='broken_tokenizer'),
        pytest.param(no_weights, ['no safetensors weights'], id='no_weights'),
        pytest.param(
            truncated_weights,
            ['is not a complete safetensors file', '1000000'],
            id='truncated_weights',
        ),
        pytest.param(weights_of_another_model, ['lacks 1 of its weights'], id='lacks_a_weight'),
        pytest.param(pickle_instead, ['no safetensors weights', 'run code'], id='pickle'),
        pytest.param(
            remote_code('config.json', AutoConfig='Evil'),
            ['code of its own', 'auto_map in config.json'],
            id='code_in_config',
        ),
        pytest.param(
            remote_code('tokenizer_config.json', AutoTokenizer='Evil'),
            ['code of its own', 'auto_map in tokenizer_config.json'],
            id='code_in_tokenizer',
        ),
        pytest.param(
            too_large, ['GiB free', 'memory_headroom_gib', '3725'], id='not_enough_memory'
        ),
        pytest.param(nan_weights, ['NaN or infinite logits'], id='nan_weights'),
    ],
)
def test_checkpoint_that_cannot_be_used(
    probe: FaultProbe, folder: Path, change: Callable[[Path], None], words: list[str]
) -> None:
    put(folder, change)
    not_ready = int(probe.reports()[-1]['frames_not_ready'])
    probe.enable(False)
    assert probe.enable(True).message == 'resumed after an error'
    probe.publish(rgb_to_image(picture(), probe.next_header()))

    def refused() -> bool:
        health = probe.health()
        return health['state'] == 'error' and int(health['frames_not_ready']) == not_ready + 1

    probe.wait(refused, 'state error, and a frame that is not taken')
    (report,) = probe.reports()[-1:]
    assert report['level'] == DiagnosticStatus.ERROR
    assert '\n' not in report['reason']
    for word in words:
        assert word in report['reason']
    assert not trace(folder).exists()
    assert probe.published == []


def test_checkpoint_put_right(probe: FaultProbe, folder: Path) -> None:
    """The recovery of all rows above, without a restart."""
    put(folder)
    assert probe.enable(False).success and probe.enable(True).success
    probe.wait_for_state('ready')
    probe.check_answered()
