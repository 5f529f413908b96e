"""How near a model that was fitted on another kind of device comes to the best of many schedules."""

from __future__ import annotations

from fedmt_flower.bench import regret
from fedmt_flower.bench.regret import report, run
from fedmt_flower.bench.result import Json

__all__ = ["CLAIM", "report", "run", "settings"]

CLAIM = "a model that was fitted on one kind of GPU chooses well on another"

_SETTINGS = ("III.1", "III.3", "heavy", "hybrid")


def settings(quick: bool) -> dict[str, Json]:
    """What the driver runs with: fewer settings and schedules than `regret`, and no sample of this device."""
    known = regret.settings(quick)
    return known | {
        "settings": {
            name: own | {"unseen": []} for name, own in known["settings"].items() if name in _SETTINGS
        },
        "schedules": 5 if quick else 60,
        "elsewhere": True,
    }
