"""The host pipeline: windows of a volume through an engine and back."""
