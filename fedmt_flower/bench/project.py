"""The `pyproject.toml` of the Flower apps that benchmarks run."""

from __future__ import annotations

import json
from collections.abc import Mapping


def project(name: str, description: str, server: str, client: str, config: Mapping[str, str | int]) -> str:
    """The text of the file.

    Parameters
    ----------
    name, description
        What the app is called, and what it is.
    server, client
        Its components, as ``module:attribute``.
    config
        The keys of its run configuration, with their defaults.
    """
    lines = [
        "[project]",
        f'name = "{name}"',
        'version = "1.0.0"',
        f'description = "{description}"',
        'license = "Apache-2.0"',
        "",
        "[tool.flwr.app]",
        'publisher = "fedmt"',
        "",
        "[tool.flwr.app.components]",
        f'serverapp = "{server}"',
        f'clientapp = "{client}"',
        "",
        "[tool.flwr.app.config]",
        # What JSON has of text and whole numbers, TOML has too.
        *(f"{key} = {json.dumps(default)}" for key, default in config.items()),
    ]
    return "\n".join(lines) + "\n"
