"""The root of every error this project raises on purpose."""

from __future__ import annotations


class CtxtError(Exception):
    """Root of the tree. Subclasses keep their facts as fields and write their own sentence."""
