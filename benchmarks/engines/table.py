"""A result of `udean-bench` for people: the cells of its table and what stands around it."""

from __future__ import annotations

from typing import Any

HEADS = (
    "engine", "network GFLOP/s", "of the GEMM's", "s a volume", "speed-up (least to largest)",
    "whole command s", "host MB", "GPU MB", "PSNR to fp32, dB", "largest error",
)  # fmt: skip


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """A row as texts; a dash stands for what was not measured."""
    if "failed" in row:
        return row["name"], "failed", *[""] * (len(HEADS) - 2)
    speed = row["speed_up"]
    first = row["name"] == row["against"] and row["kind"] == "monai"
    return (
        row["name"],
        f"{row['gflops']:.0f}",
        f"{row['share_of_peak']:.0%}",
        f"{row['seconds']:.3f}",
        "1" if first else f"{speed['median']:.2f} ({speed['low']:.2f} to {speed['high']:.2f})",
        _text(row.get("command_seconds"), "{:.2f}"),
        _text(row.get("host_mb"), "{:.0f}"),
        _text(row.get("device_mb"), "{:.0f}"),
        "itself" if row["name"] == row["against"] else _text(row["psnr"], "{:.1f}", "equal"),
        f"{row['largest_error']:.1e}",
    )


def title(document: dict[str, Any]) -> str:
    model, shape = document["model"], " x ".join(map(str, document["shape"]))
    device = document["processor"] if document["device"] == "cpu" else document["device"]
    return f"{model['name']}, {shape} voxels, {device}, {document['threads']} threads"


def failures(document: dict[str, Any]) -> list[str]:
    """Rows without figures and the reason, in the failing library's own words."""
    return [f"{row['name']} failed: {row['failed']}" for row in document["rows"] if "failed" in row]


def caption(document: dict[str, Any]) -> str:
    """The circumstances of the figures, in words."""
    windows, roofs, agreement = (document[name] for name in ("windows", "roofs", "agreement"))
    peaks = ", ".join(f"{name} {value:.0f}" for name, value in roofs["gflops"].items())
    versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    places = "the same" if windows["same_places"] else "other"
    same, own = (_text(agreement[f"{of}_weights"]["psnr"], "{:.1f} dB", "equality") for of in ("same", "own"))
    trained = document["model"]["gflop_a_window"]
    deployed = document["model"].get("gflop_a_window_deployed", trained)  # older results have one
    window = " x ".join(map(str, document["model"]["window"]))
    return (
        f"{windows['ours']} windows of {window} voxels, overlapping by {document['overlap']:g}; MONAI "
        f"{windows['monai']}, in {places} places; {trained} GFLOP a window as trained, {deployed} as "
        f"deployed; median of {document['repeats']} turns.\n"
        f"Measured roofs: {peaks} GFLOP/s, copy {roofs['copy_gb_per_s']} GB/s. "
        f"Load before {document['load_before']}.\n"
        f"fp32 against MONAI where windows coincide: {same} with the same weights, {own} with MONAI's own "
        f"gaussian, which lies on the LR grid and is cut off from below.\n"
        f"{document['processor']}, {document['cores']} cores; Python {document['python']}, {versions}."
    )


def _text(value: float | None, form: str, none: str = "–") -> str:
    return none if value is None else form.format(value)
