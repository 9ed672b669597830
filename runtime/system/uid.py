"""Identifiers derived from their contents: equal contents have equal identifiers."""

from __future__ import annotations

import hashlib
import uuid


def derived_uid(text: str) -> str:
    """A DICOM UID derived from a text by way of a UUID (PS3.5, B.2)."""
    digest = hashlib.sha256(text.encode()).digest()[:16]
    return f"2.25.{uuid.UUID(bytes=digest, version=5).int}"
