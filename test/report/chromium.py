"""Headless Chromium for tests: what a page shows, and what it requests.

It is driven by the DevTools protocol over a pipe: no port, no driver, nothing to install but
Chromium.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import functools
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

NAMES = ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable')
FLAGS = (
    '--headless=new',
    '--no-sandbox',
    '--disable-gpu',
    '--disable-quic',
    '--no-first-run',
    '--disable-background-networking',
    '--disable-component-update',
    '--disable-sync',
    '--disable-dev-shm-usage',
    '--disable-extensions',
    '--hide-scrollbars',
    '--mute-audio',
    '--no-proxy-server',
    '--remote-debugging-pipe',
)
TIMEOUT_S = 60.0
MAX_SCREENSHOT_PX = 12_000
# Chromium reads commands from descriptor 3 and writes answers to descriptor 4.
_TRAMPOLINE = (
    'import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); '
    'os.execv(sys.argv[3], sys.argv[3:])'
)


@functools.cache
def find_chromium() -> str | None:
    """Return the path of a Chromium that starts, or None."""
    for name in NAMES:
        path = shutil.which(name)
        if path is None:
            continue
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            if subprocess.run([path, '--version'], capture_output=True, timeout=30).returncode == 0:
                return path
    return None


@dataclass(frozen=True)
class Page:
    """A loaded page; `requests` are the URLs that it requested, its own first."""

    url: str
    requests: list[str]
    dom: str
    screenshot: bytes  # PNG of the whole page, at most MAX_SCREENSHOT_PX high
    facts: Any  # what the expression given to `open` returned


class Chromium:
    """A running browser with a new, empty profile; made by `chromium`."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from = to_browser, from_browser
        self._unread = b''
        self._events: list[dict[str, Any]] = []
        self._last_id = 0

    def open(self, url: str, *, width: int = 1280, height: int = 900, facts: str = 'null') -> Page:
        """Load a page in a window of this size and return it.

        `facts` is a JavaScript expression, evaluated in the page once its pictures are decoded.
        """
        target = self._call('Target.createTarget', {'url': 'about:blank'})['targetId']
        session = self._call('Target.attachToTarget', {'targetId': target, 'flatten': True})
        session_id = session['sessionId']

        def call(method: str, **parameters: Any) -> dict[str, Any]:
            return self._call(method, parameters, session_id)

        def evaluate(expression: str) -> Any:
            answer = call(
                'Runtime.evaluate', expression=expression, awaitPromise=True, returnByValue=True
            )
            if 'exceptionDetails' in answer:
                raise RuntimeError(f'{expression}: {answer["exceptionDetails"]}')
            return answer['result'].get('value')

        call(
            'Emulation.setDeviceMetricsOverride',
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        for domain in ('Network', 'Page'):
            call(f'{domain}.enable')
        self._events.clear()
        call('Page.navigate', url=url)
        self._wait_for('Page.loadEventFired', session_id)
        evaluate('Promise.allSettled([...document.images].map(image => image.decode()))')
        dom = evaluate('document.documentElement.outerHTML')
        found = evaluate(facts)
        size = call('Page.getLayoutMetrics')['cssContentSize']
        clip = {
            'x': 0,
            'y': 0,
            'width': width,
            'scale': 1,
            'height': min(size['height'], MAX_SCREENSHOT_PX),
        }
        shot = call('Page.captureScreenshot', format='png', captureBeyondViewport=True, clip=clip)
        requests = [
            event['params']['request']['url']
            for event in self._events
            if event['method'] == 'Network.requestWillBeSent'
            and event.get('sessionId') == session_id
        ]
        self._call('Target.closeTarget', {'targetId': target})
        return Page(url, requests, dom, base64.b64decode(shot['data']), found)

    def close(self) -> None:
        """Tell the browser to quit."""
        self._call('Browser.close', {})

    def _call(
        self, method: str, parameters: dict[str, Any], session_id: str | None = None
    ) -> dict[str, Any]:
        self._last_id += 1
        message = {'id': self._last_id, 'method': method, 'params': parameters}
        if session_id is not None:
            message['sessionId'] = session_id
        self._write(json.dumps(message).encode() + b'\0')
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            answer = self._read(deadline, method)
            if answer.get('id') == message['id']:
                if 'error' in answer:
                    raise RuntimeError(f'{method}: {answer["error"]}')
                return answer['result']

    def _wait_for(self, method: str, session_id: str) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while not any(
            (event['method'], event.get('sessionId')) == (method, session_id)
            for event in self._events
        ):
            self._read(deadline, method)

    def _write(self, content: bytes) -> None:
        while content:
            content = content[os.write(self._to, content) :]

    def _read(self, deadline: float, waiting_for: str) -> dict[str, Any]:
        """Return the next message; keep events."""
        while b'\0' not in self._unread:
            ready, _, _ = select.select([self._from], [], [], max(0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError(f'chromium: no answer to {waiting_for} within {TIMEOUT_S:.0f} s')
            content = os.read(self._from, 1 << 20)
            if not content:
                raise ConnectionError(f'chromium exited before {waiting_for}')
            self._unread += content
        text, _, self._unread = self._unread.partition(b'\0')
        message = json.loads(text)
        if 'method' in message:
            self._events.append(message)
        return message


@contextlib.contextmanager
def chromium() -> Iterator[Chromium]:
    """Yield a browser that quits after the block. Raises RuntimeError if none is installed."""
    path = find_chromium()
    if path is None:
        raise RuntimeError(f'no Chromium starts: tried {", ".join(NAMES)}')
    with tempfile.TemporaryDirectory(prefix='chromium-', ignore_cleanup_errors=True) as profile:
        ends = [_move_above_ten(fd) for fd in (*os.pipe(), *os.pipe())]
        commands_out, commands_in, answers_out, answers_in = ends
        arguments = [str(commands_out), str(answers_in), path, *FLAGS, f'--user-data-dir={profile}']
        process = subprocess.Popen(
            [sys.executable, '-c', _TRAMPOLINE, *arguments],
            pass_fds=(commands_out, answers_in),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(commands_out)
        os.close(answers_in)
        try:
            browser = Chromium(commands_in, answers_out)
            yield browser
            with contextlib.suppress(OSError, RuntimeError):
                browser.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=10)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            os.close(commands_in)
            os.close(answers_out)


def _move_above_ten(fd: int) -> int:
    """Move a descriptor away from 3 and 4; return its new number."""
    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(fd)
    return moved
