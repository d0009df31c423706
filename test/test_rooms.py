"""Rules of the rooms beyond what import-linter's contracts in `pyproject.toml` can express."""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest
from importlinter.api import read_configuration

ROOT = Path(__file__).parents[1]
REPORT_MAY_IMPORT = {'gmskip_ros.pipeline.rows', 'gmskip_ros.calibration.result'}


@pytest.fixture(scope='module')
def package() -> grimp.ImportGraph:
    """Return the imports of every module, those inside functions included."""
    return grimp.build_graph('gmskip_ros', exclude_type_checking_imports=True, cache_dir=None)


@pytest.fixture(scope='module')
def contracts() -> list[dict]:
    """Return import-linter's contracts."""
    return read_configuration(str(ROOT / 'pyproject.toml'))['contracts_options']


def check_no_circle(graph: grimp.ImportGraph) -> None:
    """Raise CycleError with the modules of an import circle, if there is one."""
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    TopologicalSorter(imports).prepare()


def test_there_is_no_import_circle(package: grimp.ImportGraph) -> None:
    assert len(package.modules) > 80
    check_no_circle(package)


def test_an_import_circle_is_noticed() -> None:
    graph = grimp.ImportGraph()
    graph.add_import(importer='package.a', imported='package.b')
    graph.add_import(importer='package.b', imported='package.c')
    check_no_circle(graph)
    graph.add_import(importer='package.c', imported='package.a')
    with pytest.raises(CycleError):
        check_no_circle(graph)


def test_report_imports_only_results(package: grimp.ImportGraph) -> None:
    results = {
        imported
        for module in package.modules
        if module.startswith('gmskip_ros.report.')
        for imported in package.find_modules_directly_imported_by(module)
        if imported.startswith(('gmskip_ros.pipeline', 'gmskip_ros.calibration'))
    }
    assert results
    assert results <= REPORT_MAY_IMPORT


def test_every_room_but_ros_is_forbidden_to_import_ros(
    package: grimp.ImportGraph, contracts: list[dict]
) -> None:
    (contract,) = (each for each in contracts if each['name'] == 'only ros imports ROS')
    rooms = package.find_children('gmskip_ros') - {'gmskip_ros.ros'}
    assert set(contract['source_modules']) == rooms


def test_no_contract_has_exceptions(contracts: list[dict]) -> None:
    assert contracts
    for contract in contracts:
        assert not contract.get('ignore_imports'), contract['name']
