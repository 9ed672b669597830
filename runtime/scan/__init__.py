"""One scan: its file, its geometry and its intensities."""
