"""unload_when_paused: a pause gives the model's memory back, and what is not used never stays."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fake_vlm import FakeVlm
from test_worker import DEADLINE_S, Bench, Gate, make_benches

from gmskip_ros.pipeline import worker
from gmskip_ros.pipeline.worker import load_engine
from gmskip_ros.vlm import ModelLoadError, Stopped

MakeBench = Callable[..., Bench]
bench = pytest.fixture(name='bench')(make_benches)


class Loads:
    """Loads a new stand-in each time; keeps only weak references to them."""

    def __init__(self, b: Bench, make: Callable[[], Any] = FakeVlm) -> None:
        self.models: list[weakref.ref[Any]] = []
        self._make = make
        b.load = self.load

    def load(self) -> Any:
        model = self._make()
        self.models.append(weakref.ref(getattr(model, '_model', model)))
        return model

    def all_gone(self) -> bool:
        return bool(self.models) and all(model() is None for model in self.models)


def test_the_real_model_is_gone_while_paused_and_back_afterwards(
    bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = []
    from gmskip_ros.vlm import memory

    real = memory.check_memory
    monkeypatch.setattr(memory, 'check_memory', lambda *a, **k: (checked.append(a), real(*a, **k)))
    b = bench(unload_when_paused=True, threads=3, quantization='int8')
    threads = []

    def load() -> Any:
        engine = load_engine(b.settings, lambda text: None)
        threads.append(torch.get_num_threads())  # of this thread, which answers as well
        return engine

    loads = Loads(b, load)
    b.start()
    b.wait(lambda: b.state() == 'ready')
    assert threads == [3]
    facts = b.worker.engine_facts()
    assert (facts['dtype'], facts['quantization']) == ('bfloat16', 'int8')
    b.send(1.0)
    b.wait_for_answers()
    assert b.worker.ask('What?') == ''
    b.wait(lambda: b.worker.questions.facts()['questions_answered'] == 1)
    assert b.worker.set_enabled(False) == (True, 'paused')
    b.wait(loads.all_gone)
    assert b.state() == 'paused' and b.worker.engine is None
    assert b.worker.set_enabled(True) == (True, 'resumed: the model is being loaded')
    assert b.state() == 'loading'  # at once
    b.send(2.0)  # not taken
    b.wait(lambda: b.state() == 'ready')
    b.send(3.0)
    b.wait_for_answers(2)
    assert b.outputs.done() == [1, 3]
    assert len(checked) == 2 and len(loads.models) == 2


def test_without_the_parameter_a_pause_keeps_the_model(bench: MakeBench) -> None:
    b = bench()
    loads = Loads(b)
    b.start()
    b.wait(lambda: b.state() == 'ready')
    b.worker.set_enabled(False)
    b.worker.set_enabled(True)
    b.send(1.0)
    b.wait_for_answers()
    assert len(loads.models) == 1 and loads.models[0]() is not None


def test_no_kept_exception_holds_the_model(bench: MakeBench) -> None:
    b = bench(unload_when_paused=True)

    def fail(skips: bool) -> None:
        if b.frames()['received']:
            raise RuntimeError('the device is gone')

    loads = Loads(b, lambda: FakeVlm(fail))
    b.start()
    b.wait(lambda: b.state() == 'ready')
    b.send(1.0)
    b.wait(lambda: b.frames()['failed'] == 1)
    b.worker.set_enabled(False)
    b.wait(loads.all_gone)


def test_a_pause_in_the_middle_of_a_frame_unloads_after_it(bench: MakeBench) -> None:
    gate = Gate()
    b = bench(unload_when_paused=True)
    loads = Loads(b, lambda: FakeVlm(gate))
    b.start()
    b.wait(lambda: b.state() == 'ready')
    gate.armed.set()
    b.send(1.0)
    assert gate.reached.wait(DEADLINE_S)
    b.worker.set_enabled(False)
    gate.let_go.set()
    b.wait(loads.all_gone)
    assert b.outputs.events == [] and b.frames()['abandoned'] == 1


def test_a_report_of_the_model_does_not_outlive_its_memory(
    bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a health report still holds when the allocators are emptied would stay in them."""
    gate, reached, let_go = Gate(), threading.Event(), threading.Event()

    class WatchedVlm(FakeVlm):
        def device_memory_bytes(self) -> int:
            reached.set()
            assert let_go.wait(DEADLINE_S)
            return 3 * 2**20

    b = bench(unload_when_paused=True)
    loads = Loads(b, lambda: WatchedVlm(gate))
    gone: list[bool] = []
    monkeypatch.setattr(
        'gmskip_ros.pipeline.worker.release_memory', lambda: gone.append(loads.all_gone())
    )
    b.start()
    b.wait(lambda: b.state() == 'ready')
    gate.armed.set()
    b.send(1.0)
    assert gate.reached.wait(DEADLINE_S)
    b.worker.set_enabled(False)
    facts: list[dict[str, object]] = []
    reporting = threading.Thread(target=lambda: facts.append(b.worker.engine_facts()))
    reporting.start()
    assert reached.wait(DEADLINE_S)
    gate.let_go.set()
    b.wait(lambda: b.frames()['abandoned'] == 1)
    time.sleep(0.1)  # enough for the model to be dropped under the report
    let_go.set()
    reporting.join(DEADLINE_S)
    b.wait(lambda: gone)
    assert gone == [True]
    assert facts[0]['gpu_memory_mib'] == 3.0 and facts[0]['model'] == 'fake'
    assert b.worker.engine_facts()['num_blocks'] == 0


def test_a_pause_while_loading_ends_the_loading(bench: MakeBench) -> None:
    b = bench(unload_when_paused=True)
    reached, let_go = threading.Event(), threading.Event()
    model = weakref.ref(b.vlm)

    def load(settings: Any, on_progress: Callable[[str], None]) -> FakeVlm:
        reached.set()
        assert let_go.wait(DEADLINE_S)
        on_progress('reading weights')
        raise AssertionError('went on')

    b.worker._load = load
    b.start()
    assert reached.wait(DEADLINE_S) and model() is not None
    b.worker.set_enabled(False)
    let_go.set()
    b.wait(lambda: b.state() == 'paused')
    b.worker._load = lambda settings, on_progress: FakeVlm()
    b.worker.set_enabled(True)
    b.wait(lambda: b.state() == 'ready')


def test_a_pause_at_the_last_step_of_loading_gives_the_memory_back(
    bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    b = bench(unload_when_paused=True)
    released = threading.Event()
    monkeypatch.setattr('gmskip_ros.pipeline.worker.release_memory', released.set)

    def load(settings: Any, on_progress: Callable[[str], None]) -> FakeVlm:
        b.worker.set_enabled(False)
        on_progress('loaded')  # the model is on its device, and only this function holds it
        raise AssertionError('went on')

    b.worker._load = load
    b.start()
    b.wait(lambda: b.state() == 'paused')
    assert released.wait(DEADLINE_S)


def test_started_disabled_files_are_fetched_and_nothing_is_loaded(bench: MakeBench) -> None:
    b = bench(start_enabled=False, unload_when_paused=True)
    loads = Loads(b)
    fetched = threading.Event()
    b.worker._fetch = lambda settings, on_progress: (on_progress('downloading'), fetched.set())
    b.start()
    assert fetched.wait(DEADLINE_S)
    b.wait(lambda: b.state() == 'paused')
    b.send(1.0)
    assert loads.models == [] and b.frames()['not_ready'] == 1
    assert b.worker.set_enabled(True)[0]
    b.wait(lambda: b.state() == 'ready')
    b.send(2.0)
    b.wait_for_answers()
    assert len(loads.models) == 1


def test_files_that_cannot_be_fetched_are_an_error(bench: MakeBench) -> None:
    b = bench(start_enabled=False, unload_when_paused=True)

    def fetch(settings: Any, on_progress: Callable[[str], None]) -> None:
        raise ModelLoadError('the hub cannot be reached: check the network')

    b.worker._fetch = fetch
    b.start()
    b.wait(lambda: b.state() == 'error')
    assert 'check the network' in b.worker.health.report(0.0).reason
    assert b.worker.set_enabled(True) == (
        True,
        'resumed after an error: the model is being loaded',
    )
    b.wait(lambda: b.state() == 'ready')


def test_a_skip_list_of_another_model_does_not_keep_the_model(bench: MakeBench) -> None:
    def other() -> FakeVlm:
        vlm = FakeVlm()
        vlm.num_blocks = 24
        return vlm

    b = bench()
    loads = Loads(b, other)
    b.start()
    b.wait(lambda: b.state() == 'error')
    assert '24' in b.worker.health.report(0.0).reason
    b.wait(loads.all_gone)
    b.worker.set_enabled(False)
    b.worker.set_enabled(True)
    b.wait(lambda: len(loads.models) == 2)  # the files may have been exchanged


def test_stopping_ends_a_fetch(bench: MakeBench) -> None:
    b = bench(start_enabled=False, unload_when_paused=True)
    reached, let_go, ended = threading.Event(), threading.Event(), threading.Event()

    def fetch(settings: Any, on_progress: Callable[[str], None]) -> None:
        reached.set()
        assert let_go.wait(DEADLINE_S)
        try:
            on_progress('downloading')
        except Stopped:
            ended.set()
            raise

    b.worker._fetch = fetch
    b.start()
    assert reached.wait(DEADLINE_S)
    b.worker.stop()
    let_go.set()
    assert b.stop(DEADLINE_S) and ended.is_set()


def test_the_default_fetch_needs_the_engines_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, 'gmskip_ros.vlm.load', None)
    with pytest.raises(ModelLoadError, match='is not installed for'):
        worker.fetch_model(Bench().settings, lambda text: None)
