"""Hashes by which records are told apart."""

from __future__ import annotations

import hashlib
import json


def json_hash(value: object) -> str:
    """SHA-256 of a value of JSON, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
