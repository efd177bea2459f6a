"""What holds for all tests."""

from __future__ import annotations

import signal

from hypothesis import settings

# Started in the background of a shell, SIGINT is ignored, and every program that a test starts would ignore it too.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")
