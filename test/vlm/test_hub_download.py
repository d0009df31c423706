"""Downloads, against an HTTP server that speaks the hub's protocol and records the requests."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import transformers
from tiny_models import make_tiny_model

from gmskip_ros.vlm import ModelLoadError, Stopped, load_vlm, memory
from gmskip_ros.vlm.hub import find_folder
from gmskip_ros.vlm.load import fetch_files

NAME = 'owner/name'
COMMITS = {'main': '1' * 40, 'v1.0': '2' * 40, 'pr/7': '3' * 40}


class FakeHub:
    """Serves the folders of `revisions` as NAME; `requests` are (method, file or API path)."""

    def __init__(self) -> None:
        self.revisions: dict[str, Path] = {}  # by commit
        self.requests: list[tuple[str, str]] = []
        self.server = ThreadingHTTPServer(('127.0.0.1', 0), self._handler())
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f'http://127.0.0.1:{self.server.server_port}'

    def downloaded(self) -> list[str]:
        """Return the files whose content was requested, in order."""
        return [what for method, what in self.requests if method == 'GET' and '/' not in what]

    def _handler(hub) -> type:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = 'HTTP/1.1'

            def do_GET(self) -> None:
                path = unquote(urlsplit(self.path).path)
                api = f'/api/models/{NAME}'
                if path.startswith(f'{api}/revision/'):
                    self._info(path.removeprefix(f'{api}/revision/'))
                elif path == api:
                    self._info('main')
                elif path.startswith(f'{api}/tree/'):
                    self._tree(path.removeprefix(f'{api}/tree/'))
                elif path.startswith(f'/{NAME}/resolve/'):
                    commit, _, file = path.removeprefix(f'/{NAME}/resolve/').partition('/')
                    self._file(commit, file)
                else:
                    self._answer(404, b'{}')

            do_HEAD = do_GET

            def _info(self, revision: str) -> None:
                commit = COMMITS.get(revision, revision)
                hub.requests.append((self.command, f'info/{revision}'))
                if commit not in hub.revisions:
                    return self._answer(404, b'{}', **{'X-Error-Code': 'RevisionNotFound'})
                siblings = [{'rfilename': path.name} for path in hub.revisions[commit].iterdir()]
                content = {'id': NAME, 'modelId': NAME, 'sha': commit, 'siblings': siblings}
                return self._answer(200, json.dumps(content).encode())

            def _tree(self, commit: str) -> None:
                hub.requests.append((self.command, f'tree/{commit}'))
                entries = [
                    {
                        'type': 'file',
                        'path': path.name,
                        'size': path.stat().st_size,
                        'oid': hashlib.sha1(path.read_bytes()).hexdigest(),
                    }
                    for path in sorted(hub.revisions[commit].iterdir())
                ]
                self._answer(200, json.dumps(entries).encode())

            def _file(self, commit: str, file: str) -> None:
                hub.requests.append((self.command, file))
                path = hub.revisions[commit] / file
                if not path.is_file():
                    return self._answer(404, b'', **{'X-Error-Code': 'EntryNotFound'})
                content = path.read_bytes()
                headers = {
                    'ETag': f'"{hashlib.sha1(content).hexdigest()}"',
                    'X-Repo-Commit': commit,
                }
                return self._answer(200, content, **headers)

            def _answer(self, status: int, content: bytes, **headers: str) -> None:
                self.send_response(status)
                self.send_header('Content-Length', str(len(content)))
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == 'GET':
                    self.wfile.write(content)

            def log_message(self, *_args: object) -> None:
                pass

        return Handler


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Iterator[FakeHub]:
    served = FakeHub()
    served.revisions[COMMITS['main']] = make_tiny_model(tmp_path / 'remote', num_blocks=2)
    monkeypatch.setattr('huggingface_hub.constants.ENDPOINT', served.url)
    monkeypatch.setattr(
        'huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE',
        served.url + '/{repo_id}/resolve/{revision}/{filename}',
    )
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', False)
    monkeypatch.setattr('gmskip_ros.vlm.hub._remembered', {})
    yield served
    served.server.shutdown()
    served.server.server_close()


def remote(hub: FakeHub) -> Path:
    return hub.revisions[COMMITS['main']]


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def is_weight(file: str) -> bool:
    return file.endswith(('.safetensors', '.bin', '.gguf'))


def test_a_model_is_downloaded_once_json_first(hub) -> None:
    assert load_vlm(NAME, 'cpu').num_blocks == 2
    files = hub.downloaded()
    assert sorted(files) == sorted(set(files))  # each once
    weights = [index for index, file in enumerate(files) if is_weight(file)]
    assert len(weights) == 1
    json_files = [index for index, file in enumerate(files) if file.endswith('.json')]
    assert max(json_files) < weights[0]
    hub.requests.clear()
    assert load_vlm(NAME, 'cpu').num_blocks == 2
    assert hub.downloaded() == []


def test_without_the_network_the_cache_is_enough(hub) -> None:
    load_vlm(NAME, 'cpu')
    hub.server.shutdown()
    hub.server.server_close()
    assert load_vlm(NAME, 'cpu').num_blocks == 2


@pytest.mark.parametrize('first', [load_vlm, fetch_files])
def test_what_was_loaded_or_fetched_is_loaded_without_asking_the_hub(hub, first) -> None:
    first(NAME, on_progress=lambda text: None)
    hub.requests.clear()
    hub.server.shutdown()
    hub.server.server_close()
    memory.check_memory(NAME, 'cpu', 'auto', headroom_gib=0.0)
    assert load_vlm(NAME, 'cpu').num_blocks == 2
    assert hub.requests == []


def test_a_load_that_was_stopped_does_not_need_the_hub_again(hub) -> None:
    load_vlm(NAME, 'cpu')

    def stop(step: str) -> None:
        if step == 'loading weights':
            raise Stopped('paused')

    with pytest.raises(Stopped):
        load_vlm(NAME, 'cpu', on_progress=stop)
    hub.requests.clear()
    load_vlm(NAME, 'cpu')
    assert hub.requests == []


def test_what_cannot_be_loaded_is_asked_for_anew(hub) -> None:
    load_vlm(NAME, 'cpu')
    with pytest.raises(ModelLoadError):
        load_vlm(NAME, 'cpu', chat_template='{{ broken')
    hub.requests.clear()
    load_vlm(NAME, 'cpu')
    assert hub.requests


@pytest.mark.parametrize(
    ('changes', 'says'),
    [
        ({'model_type': 'blip-2'}, "type 'blip-2'"),
        ({'mm_vision_tower': 'openai/clip'}, 'original LLaVA'),
        ({'quantization_config': {'quant_method': 'awq'}}, 'quantised with awq'),
        ({'auto_map': {'AutoConfig': 'evil.Config'}}, 'auto_map'),
    ],
    ids=['family', 'original', 'quantised', 'code'],
)
def test_a_checkpoint_that_cannot_run_is_refused_before_its_weights(hub, changes, says) -> None:
    edit_json(remote(hub) / 'config.json', **changes)
    with pytest.raises(ModelLoadError, match=says):
        load_vlm(NAME, 'cpu')
    assert hub.downloaded() and not any(map(is_weight, hub.downloaded()))


@pytest.mark.parametrize(
    ('name', 'says'), [('model.gguf', 'GGUF'), ('pytorch_model.bin', 'no safetensors weights')]
)
def test_formats_that_only_the_list_of_files_shows(hub, name, says) -> None:
    (remote(hub) / 'model.safetensors').rename(remote(hub) / name)
    with pytest.raises(ModelLoadError, match=says):
        load_vlm(NAME, 'cpu')
    assert not any(map(is_weight, hub.downloaded()))


def test_a_model_that_does_not_fit_is_refused_before_its_weights(hub, monkeypatch) -> None:
    size = (remote(hub) / 'model.safetensors').stat().st_size
    need = memory.memory_need(remote(hub), 'float32')
    monkeypatch.setattr(memory, 'free_bytes', lambda device: need.total_bytes - 2 * size)
    with pytest.raises(ModelLoadError, match=r'needs .* GiB in float32'):
        memory.check_memory(NAME, 'cpu', 'auto', headroom_gib=0.0)
    assert not any(map(is_weight, hub.downloaded()))
    monkeypatch.setattr(memory, 'free_bytes', lambda device: need.total_bytes + 2 * size)
    memory.check_memory(NAME, 'cpu', 'auto', headroom_gib=0.0)
    load_vlm(NAME, 'cpu')
    assert sum(map(is_weight, hub.downloaded())) == 1


def test_only_weights_that_are_read_are_downloaded(hub) -> None:
    """Some repositories hold the same weights twice, or in several formats."""
    folder = remote(hub)
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder)
    (folder / 'model.safetensors').rename(folder / 'consolidated.safetensors')
    model.save_pretrained(folder, max_shard_size='50KB')
    (folder / 'pytorch_model.bin').write_bytes(b'never read')
    (folder / 'notes.md').write_text('# about')
    load_vlm(NAME, 'cpu')
    files = hub.downloaded()
    assert sum(file.startswith('model-0') for file in files) == len(list(folder.glob('model-0*')))
    assert not {'consolidated.safetensors', 'pytorch_model.bin', 'notes.md'} & set(files)


def test_revisions(hub, tmp_path) -> None:
    hub.revisions[COMMITS['v1.0']] = make_tiny_model(tmp_path / 'old', num_blocks=3)
    hub.revisions[COMMITS['pr/7']] = make_tiny_model(tmp_path / 'pr', num_blocks=1)
    for revision, num_blocks in {'v1.0': 3, 'pr/7': 1, COMMITS['v1.0']: 3, 'main': 2}.items():
        vlm = load_vlm(f'{NAME}@{revision}', 'cpu')
        assert (vlm.num_blocks, vlm.name) == (num_blocks, f'{NAME}@{revision}')
    with pytest.raises(ModelLoadError, match='check the name'):
        load_vlm(f'{NAME}@gone', 'cpu')


def test_progress_names_the_size(hub) -> None:
    steps: list[str] = []
    find_folder(NAME, steps.append)
    assert f'looking for {NAME} in the cache and on the hub' in steps
    assert any(step.startswith(f'downloading {NAME}: ') and step.endswith(' GB') for step in steps)
    steps.clear()
    find_folder(NAME, steps.append)
    assert not any(step.startswith('downloading') for step in steps)
