"""Runs: many scans, which ones, what became of each, where results go."""
