"""The paper's Tables I and II on any cohort, beside the published figures."""
