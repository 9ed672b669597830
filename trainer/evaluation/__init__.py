"""How good SR volumes are."""
