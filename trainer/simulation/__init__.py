"""Simulated acquisitions and simulated heads."""
