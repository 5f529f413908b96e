"""`python -m fedmt_flower` is the command `fedmt`."""

from __future__ import annotations

import sys

from fedmt_flower.cli import main

sys.exit(main())
