"""DICOM: series in, derived series out, by `udean-run` or by a node of its own."""
