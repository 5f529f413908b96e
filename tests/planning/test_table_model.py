import numpy as np
import pytest

from fedmt_flower.domain.profile import CoRunSample, DeviceFeatures, TaskFeatures
from fedmt_flower.errors import ConfigError
from fedmt_flower.planning.table_model import TableModel
from fedmt_flower.planning.throughput import CoRuns


@pytest.fixture
def table(device: DeviceFeatures, zoo: dict[str, TaskFeatures]) -> TableModel:
    pair = (zoo["r18"], zoo["m3"])

    def sample(budgets: tuple[float, ...], rates: tuple[float, ...], mix=pair, batches=(128, 128)):
        return CoRunSample(device=device, tasks=mix, batches=batches, budgets=budgets, rates=rates)

    return TableModel(
        [
            sample((20, 80), (10.0, 90.0)),
            sample((80, 20), (70.0, 30.0)),
            sample((80, 20), (75.0, 35.0), batches=(512, 512)),
            sample((100,), (100.0,), mix=(zoo["r18"],), batches=(128,)),
        ]
    )


def test_the_nearest_measured_setting_answers(
    table: TableModel, device: DeviceFeatures, zoo: dict[str, TaskFeatures]
) -> None:
    runs = CoRuns(
        device=device,
        tasks=(zoo["m3"], zoo["r18"]),
        batches=np.array([[128.0, 128.0], [100.0, 128.0], [512.0, 400.0], [128.0, 128.0]]),
        budgets=np.array([[80.0, 20.0], [30.0, 90.0], [20.0, 80.0], [0.0, 60.0]]),
    )
    assert table.rates(runs).tolist() == [[90.0, 10.0], [30.0, 70.0], [35.0, 75.0], [0.0, 100.0]]


def test_a_set_that_was_never_measured_is_refused(
    table: TableModel, device: DeviceFeatures, zoo: dict[str, TaskFeatures]
) -> None:
    runs = CoRuns(device=device, tasks=(zoo["s2"],), batches=np.array([[128.0]]), budgets=np.array([[100.0]]))
    with pytest.raises(ConfigError, match="s2 were never measured together"):
        table.rates(runs)
