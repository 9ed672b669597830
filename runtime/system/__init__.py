"""This machine: files, threads, traces and logs."""
