"""What a prediction is worth is told by what taking its favourite would lose."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedmt_flower.bench.bench import Options
from fedmt_flower.bench.driver import measure
from fedmt_flower.bench.predict import selection_regret
from fedmt_flower.bench.specimen import Contention, draw_samples
from fedmt_flower.domain.allocation import Objective
from fedmt_flower.domain.device import Backend
from fedmt_flower.errors import ConfigError
from fedmt_flower.planning.throughput import Array, CoRuns


class Contrary:
    """Prefers what is worst."""

    monotone = False

    def rates(self, runs: CoRuns) -> Array:
        return np.asarray(runs.solo_rates**2 / Contention().rates(runs))


@pytest.mark.parametrize("objective", [Objective.RAW, Objective.FAIRNESS])
def test_the_truth_loses_no_more_than_the_noise(objective: Objective) -> None:
    samples = [sample for sample in draw_samples(mixes=20) if len(sample.tasks) > 1]
    assert 0 <= selection_regret(Contention(), samples, objective) < 0.02
    assert selection_regret(Contrary(), samples, objective) > 0.05


def test_a_prediction_without_a_profile_is_refused(tmp_path: Path) -> None:
    options = Options(backend=Backend.CPU, out=tmp_path, budget_s=10.0, command="")
    with pytest.raises(ConfigError, match="got no profile, expected --profile FILE"):
        measure("predict", options, lambda line: None)
