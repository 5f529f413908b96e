"""An exception in one line, with the place in the user's own code that it came from."""

from __future__ import annotations

import sysconfig
import traceback
from pathlib import Path

_LONGEST = 400
_FOREIGN = (
    str(Path(__file__).parent.parent / "device"),
    sysconfig.get_path("purelib"),
    sysconfig.get_path("platlib"),
    sysconfig.get_path("stdlib"),
    "<",
)


def describe(error: BaseException) -> str:
    """Tell `error` in one line: its type, its text and the file and line that raised it.

    The place is the innermost frame outside the installed packages and the engine, which is where a
    user can do something; if there is none, the innermost frame.
    """
    text = " ".join(str(error).split())
    if len(text) > _LONGEST:
        text = text[:_LONGEST] + " …"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(_FOREIGN)] or frames
    place = f" ({Path(own[-1].filename).name}:{own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {text}{place}" if text else f"{type(error).__name__}{place}"
