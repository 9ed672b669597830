"""Networks, their fixed interpolation, and losses."""
