"""Engines: a trained network that turns LR windows into HR windows, one file per library; see `choose`."""
