"""Runs over many scans: selection, outcomes, output paths, sidecars."""
