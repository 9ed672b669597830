"""Identifiers that follow from what they identify: the same again has the same one."""

from __future__ import annotations

import hashlib
import uuid


def derived_uid(text: str) -> str:
    """A DICOM UID derived from a UUID (PS3.5, B.2) that follows from a text."""
    digest = hashlib.sha256(text.encode()).digest()[:16]
    return f"2.25.{uuid.UUID(bytes=digest, version=5).int}"
