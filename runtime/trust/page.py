"""The examination as one self-contained HTML page."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

TITLES = {
    "lesions": (
        "Lesions",
        "The share of a lesion's contrast (±30 %) that is left, by radius in HR voxels: 1 is all of it.",
    ),
    "lesions in noise": (
        "Lesions in noise",
        "The same in a scan with 2 % noise.",
    ),
    "lesions at boundaries": (
        "Lesions at boundaries of tissues",
        "The same at boundaries, such as the cortex; without noise.",
    ),
    "high band": (
        "Detail",
        "Detail that the scan cannot hold: the factor by which it would be closest to the "
        "truth (1 is right, below 0.8 too much is drawn), and its correlation with the truth.",
    ),
    "edge": ("A slanted edge", "Its width and ringing, as in ISO 12233; the sharpest has the least width."),
    "two points": (
        "Two points",
        "The distance in HR voxels from which they can be distinguished, by Rayleigh's criterion.",
    ),
    "low contrast": (
        "Little contrast",
        "Spokes of an ACR-like phantom that are seen in 2 % noise, out of 40.",
    ),
    "noise": ("Noise", "Standard deviation of the output noise over that of the input noise."),
    "nothing": (
        "Out of nothing",
        "What is drawn although nothing is there: in noise, an empty scan and on a smooth ramp. Ideal: 0.",
    ),
    "sensitivity": (
        "What should change nothing",
        "RMS difference in tissue, as a share of the peak, after a flip or a move of the scan, or in other "
        "units.",
    ),
    "range": (
        "Out of range",
        "PSNR in tissue: unchanged, with 5 % noise, and with a coil sensitivity that falls to a fifth.",
    ),
}
NAMES = {"sr": "this model", "sinc": "sinc", "tricubic": "tricubic"}
STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse}td,th{padding:.2rem .7rem;border-bottom:1px solid #ccc;text-align:right}"
    "td:first-child,th:first-child{text-align:left}"
)


def page(about: dict[str, str], tests: dict[str, Any], worse: Sequence[str]) -> str:
    """about: what was examined, by name. tests: figures by test and method. worse: the objections to it."""
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>udean-trust</title><style>{STYLE}</style>"
    ]
    parts += ["<h1>What this model does to a scan</h1>"]
    parts += [f"<p>{html.escape(k)}: {html.escape(v)}</p>" for k, v in about.items()]
    verdict = [f"<li>{html.escape(sentence)}</li>" for sentence in worse]
    parts += [
        f"<ul>{''.join(verdict)}</ul>"
        if verdict
        else "<p>It keeps lesions as well as sinc does, and draws no more detail than there is.</p>"
    ]
    for name, by_method in tests.items():
        title, meaning = TITLES[name]
        parts += [f"<h2>{title}</h2><p>{meaning}</p>", _table(by_method)]
    return "\n".join([*parts, "<p>Research only, not for diagnosis.</p></html>", ""])


def _table(by_method: dict[str, dict[str, Any]]) -> str:
    flat = {method: _flat(figures) for method, figures in by_method.items()}
    names = list(dict.fromkeys(name for figures in flat.values() for name in figures))
    if not names:
        return "<p>There was no place for it.</p>"
    head = "".join(f"<th>{NAMES[method]}</th>" for method in flat)
    rows = [
        f"<tr><td>{html.escape(name)}</td>"
        + "".join(f"<td>{_number(figures.get(name))}</td>" for figures in flat.values())
        + "</tr>"
        for name in names
    ]
    return f"<table><tr><th></th>{head}</tr>{''.join(rows)}</table>"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _flat(figures: dict[str, Any], before: str = "") -> dict[str, float]:
    found: dict[str, float] = {}
    for name, value in figures.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{before}r = {name}, ")
        else:
            found[before + name] = value
    return found
