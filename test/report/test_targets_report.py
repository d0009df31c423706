"""Several targets in one table: what each row says is what the target's calibration says."""

from __future__ import annotations

import csv

import pytest
import synthetic_results as made_up
from terminal import printed

from gmskip_ros.report.targets_report import targets_table, write_targets_report


@pytest.mark.parametrize('test', [True, False])
def test_a_row_per_target(tmp_path, test):
    results = [made_up.calibration(target=name, test=test) for name in ('person', 'car')]
    [path] = write_targets_report(results, tmp_path)
    with open(path, newline='') as file:
        rows = list(csv.DictReader(file))
    assert [row['target'] for row in rows] == ['person', 'car']
    for result, row in zip(results, rows, strict=True):
        for point, length in result['operating_points'].items():
            prefix = result['prefixes'][length]
            expected = prefix['test']['score'] if test else prefix['calibration_score']
            assert float(row[f'{point}_score']) == expected
            assert float(row[f'{point}_sparsity']) == prefix['sparsity']
            ends = prefix['test']['speed_up_with_vision_interval'] if test else ('', '')
            shown = (row[f'{point}_speed_up_{end}'] for end in ('low', 'high'))
            assert tuple(shown) == tuple(map(str, ends))
        constant = result['test_baselines' if test else 'baselines']['constant']['score']
        assert float(row['constant_score']) == constant
    shown = printed([targets_table(results)], 100)
    assert 'person' in shown and 'car' in shown
    assert ('test images' if test else 'images of the search') in shown
