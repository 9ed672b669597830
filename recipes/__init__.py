"""Recipes of the embedded models: what is done with training data before and with a training afterwards."""
