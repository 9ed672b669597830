"""Benchmarks: one question for each file. MONAI imports Matplotlib, whose files stay in our cache folder."""

from ..runtime.system.matplotlib_files import keep_in_cache

keep_in_cache()
