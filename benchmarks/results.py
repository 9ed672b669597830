"""Every figure that is shown, from the JSON that benchmarks wrote: RESULTS.md, README, docs/.

    python -m udean.benchmarks.results

In README.md and docs/ a figure stands between the marks `<!-- results:NAME -->` and `<!-- end -->`. NAME is
one of `FIGURES`, or the path of figures to show unchanged: "soak-node", "adaptation/targets/*/rows"; the
asterisk means every key. The same JSON gives the same text, and a test fails if a page says otherwise.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..runtime.errors import RunError
from ..runtime.system.files import atomic
from . import quality, through_plane, tissue
from .common import RESULTS, run_script
from .engines import table as bench

ROOT = Path(__file__).parents[1]
RAW = ("runs", "losses")  # every repetition; the medians are shown
WIDE = 9  # columns at most of a table whose rows have groups of figures
CIRCUMSTANCES = ("command", "date", "processor", "cores", "python", "versions")
MARKED = re.compile(r"<!-- results:(?P<name>[^>]+) -->.*?<!-- end -->", re.DOTALL)
HEAD = """# Results

What the benchmarks found, one section for each JSON file of this folder. `make results` writes this page
and the figures in README.md and docs/. Seconds are medians after a warm-up and mean little on another
machine; ratios were measured in alternation.
"""
Result = dict[str, Any]


def main() -> None:
    """Write results/RESULTS.md and the figures in README.md and docs/."""
    for path, contents in pages().items():
        if not path.exists() or path.read_text() != contents:
            with atomic(path) as file:
                file.write(contents.encode())
            print(path.relative_to(ROOT))


def pages(folder: Path = RESULTS) -> dict[Path, str]:
    """The contents that RESULTS.md and the pages with marked figures must have."""
    found = results(folder)
    sections = [section(name, result) for name, result in found.items()]
    sections += [papers_tables(path) for path in sorted(folder.glob("*/tables.json"))]
    shown = {folder / "RESULTS.md": "\n".join([HEAD, *sections])}
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        if MARKED.search(text := path.read_text()):
            shown[path] = marked(text, found)
    return shown


def results(folder: Path = RESULTS) -> dict[str, Result]:
    """The results by file name, in its order."""
    return {path.stem: json.loads(path.read_bytes()) for path in sorted(folder.glob("*.json"))}


def of(name: str, prefix: str) -> bool:
    """Whether a result belongs to this benchmark: "scaling" or "scaling-2-cores"."""
    return name == prefix or name.startswith(f"{prefix}-")


def marked(text: str, found: Mapping[str, Result]) -> str:
    """A page with every marked figure as the results say. Raises RunError for a name that is not a figure."""

    def figure(match: re.Match[str]) -> str:
        name = match["name"]
        value = FIGURES[name](found) if name in FIGURES else shown_at(name.split("/"), found)
        gap = "\n\n" if "\n" in value else ""
        return f"<!-- results:{name} -->{gap}{value}{gap}<!-- end -->"

    return MARKED.sub(figure, text)


def shown_at(path: Sequence[str], found: Mapping[str, Any]) -> str:
    """The value at a path as text, or its figures as tables. Raises RunError if there is none."""

    def at(value: Any, keys: Sequence[str]) -> Any:
        if not keys:
            return value
        if keys[0] == "*":
            return {key: inner for key in value if (inner := at(value[key], keys[1:]))}
        return at(value[keys[0]], keys[1:])

    try:
        value = at(found, path)
    except (KeyError, TypeError):
        raise RunError(f"A page refers to {'/'.join(path)}, which is not a figure of the results.") from None
    if not isinstance(value, dict):
        return number(value)
    value = _without_circumstances(value)
    rows = _table(value) if any(map(_nested, value.values())) else []  # single values are lines
    return "\n".join(rows or told_of(value, 3)).strip()


# The figures in README.md and docs/


def how_good(found: Mapping[str, Result]) -> str:
    """Whole heads in tissue, then the whole T1: a table."""
    names = {"tricubic": "tricubic", "sinc": "sinc (zero-filled)", "sr": "sr (embedded model)"}
    rows = []
    for head, by_noise in found["quality"].get(quality.IN_TISSUE, {}).items():
        for noise, by_method in by_noise.items():
            psnr = [f"{by_method[method]['tissue dB']:.2f}" for method in names]
            lesions = [_kept(by_method, method) for method in ("sinc", "sr")]
            rows.append([f"{head}, tissue, {noise}", *psnr, f"{tissue.gain(by_method):+.2f}", *lesions])
    whole = found["quality"]["ICBM152 T1, whole volume"]
    psnr = [f"{whole[method]['PSNR dB']:.2f}" for method in names]
    better = whole["sr"]["PSNR dB"] - max(whole[method]["PSNR dB"] for method in ("tricubic", "sinc"))
    rows.append(["ICBM152 T1, whole volume with air", *psnr, f"{better:+.2f}", "", ""])
    heads = ["PSNR dB", *names.values(), "gain", "small lesions kept: sinc", "sr"]
    return "\n".join(table(heads, rows))


def _kept(by_method: Mapping[str, Mapping[str, float]], method: str) -> str:
    """The remaining contrast of the smallest lesions, if there was room for any."""
    kept = by_method[method].get("lesions r = 1")
    return "" if kept is None else f"{kept:.2f}"


def how_steady(found: Mapping[str, Result]) -> str:
    """The gain under all degradations: a sentence."""
    subjects = quality.by_degradation(found["quality"])
    gains = {(s, c): quality.gain_over_both(row) for s, rows in subjects.items() for c, row in rows.items()}
    (_, least), (_, most) = min(gains, key=gains.__getitem__), max(gains, key=gains.__getitem__)
    low, high = min(gains.values()), max(gains.values())
    noise = subjects["ICBM152 T1"]["noise 5 %"]
    return (
        f"Over the better of the two it gains {low:+.2f} dB ({least}) to {high:+.2f} dB ({most}) on "
        f"{len(subjects)} heads under {len(gains) // len(subjects)} degradations. It is not a denoiser: with "
        f"5 % noise the T1's SSIM is {noise['sr SSIM']:.2f}, tricubic's {noise['tricubic SSIM']:.2f}."
    )


def precisions(found: Mapping[str, Result]) -> str:
    """The cost of cheaper arithmetic, as part of a sentence."""
    rows = found["quality"]["artefacts on the ICBM152 T1"]
    parts = []
    for name, row in rows.items():
        kind, psnr = name.partition(" ")[0], row.get("PSNR to fp32, dB")
        if kind != "fp32":  # equal bits: a processor without bfloat16 computes in float32 instead
            parts.append(f"{kind} no difference" if psnr is None else f"{kind} {psnr:.0f} dB")
    return ", ".join(parts)


def background(found: Mapping[str, Result]) -> str:
    """The saving from skipping the background, as part of a sentence."""
    rows = [by_way["content"] for by_way in found["background"]["by window"].values()]
    faster, psnr = sorted(row["times faster"] for row in rows), min(row["psnr"] for row in rows)
    return f"{faster[0]:.1f} to {faster[-1]:.1f} times as fast at {psnr:.0f} dB inside the head"


def large_volume(found: Mapping[str, Result]) -> str:
    """Memory of the largest volume that was measured in a mapped file."""
    mapped = [r for n, r in found.items() if of(n, "memory") and r["file"] == ".nii"]
    largest = max(mapped, key=lambda r: r["MB"]["output"])
    shape, megabytes = "×".join(map(str, largest["shape"])), largest["MB"]
    return (
        f"{shape} ({megabytes['output'] / 1e3:.1f} GB out) peaked at "
        f"{megabytes['peak over output'] / 1e3:.1f} GB over its output"
    )


def seconds(found: Mapping[str, Result]) -> str:
    """How long the embedded model's network takes for a head: a sentence."""
    result = next(r for n, r in found.items() if of(n, "latency-embedded"))
    shape, took = "×".join(map(str, result["shape"])), result["medians"]["volume"]["total"]
    return (
        f"A scan of {shape} voxels takes {took:.0f} s on {result['cores']} cores of an {_processor(result)}."
    )


def fastest(found: Mapping[str, Result]) -> str:
    """The embedded model's fastest engine against the PyTorch path: a sentence."""
    rows = [
        (row["speed_up"]["median"], row, result)
        for name, result in found.items()
        if of(name, "bench") and result["model"]["name"] == "udean-2x2x2"
        for row in result["rows"]
        if row["kind"] == "udean" and "failed" not in row
    ]
    if not rows:
        return "`make bench` measures your machine; no result is committed yet."
    _, row, result = max(rows, key=lambda found: found[0])
    up, machine = row["speed_up"], _processor(result) if result["device"] == "cpu" else result["device"]
    return (
        f"On {result['threads']} threads of an {machine} the embedded model runs {up['median']:.2f} "
        f"({up['low']:.2f} to {up['high']:.2f}) times as fast as in PyTorch behind MONAI's sliding window of "
        f"{_windows(result)} ({row['name']})."
    )


def _processor(result: Result) -> str:
    """The processor's name, without its features."""
    return result["processor"].partition(" (")[0]


def _windows(result: Result) -> str:
    """The windows of the PyTorch path."""
    return f"{'×'.join(map(str, result['model']['window']))} voxels, overlap {result['overlap']:g}"


def speed(found: Mapping[str, Result]) -> str:
    """Each machine's engines against the PyTorch path."""
    lines: list[str] = []
    for name, result in found.items():
        if not of(name, "bench"):
            continue
        lines += [
            f"| {bench.title(result)}, windows of {_windows(result)} "
            "| times the PyTorch path | PSNR to fp32, dB |",
            "|---|---|---|",
        ]
        for row, cells in (
            (row, dict(zip(bench.HEADS, bench.cells(row), strict=True))) for row in result["rows"]
        ):
            if row["kind"] == "udean" and "failed" not in row:
                shown = cells["engine"], cells["speed-up (least to largest)"], cells["PSNR to fp32, dB"]
                lines.append(f"| {' | '.join(shown)} |")
        lines.append("")
    return "\n".join(lines).strip() or "`make bench` measures your machine; no result is committed yet."


def on_paper(found: Mapping[str, Result]) -> str:
    """Bytes, operations and shortest time of each stage on an H100: tables."""
    lines: list[str] = []
    for name in ("gpu-on-paper-paper", "gpu-on-paper-compact"):
        result = found[name]
        half, full = (result["network"][p] for p in ("fp16", "fp32"))
        rows = [
            [s[key] for key in ("stage", "bytes", "flop", "bound by", "seconds")] for s in result["stages"]
        ]
        for precision, network in (("fp16", half), ("fp32", full)):
            bound = f"memory in {network['layers bound by memory']} of {network['layers']} layers"
            figures = network["bytes"], network["flop"], bound, network["seconds"]
            rows.append([f"network, {precision}", *figures])
        shape, window = ("×".join(map(str, result[key])) for key in ("shape", "window"))
        lines += [f"**{result['preset']}**, {shape} voxels, {result['windows']} windows of {window}", ""]
        told = [[s, f"{b / 1e9:.3g}", f"{f / 1e12:.3g}", by, f"{t * 1e3:.3g}"] for s, b, f, by, t in rows]
        lines += [*table(["stage", "GB", "TFLOP", "bound by", "ms at least"], told), ""]
    return "\n".join(lines).strip()


def thick_slices(found: Mapping[str, Result]) -> str:
    """The gain of thick slices over B-spline by slice profile, as a table, and other figures, as a list."""
    heads = found["through-plane"]["by head"]
    cases: dict[str, dict[str, list[str]]] = {}
    for head, rows in heads.items():
        for told, row in rows.items():
            spacing, shape, what = told.split(", ")
            cell = cases.setdefault(f"{spacing}, {what}", {}).setdefault(head, [])
            cell.insert(through_plane.SHAPES.index(shape), f"{row['gain dB']:+.2f}")
    shown = [[told, *(" / ".join(by_head[head]) for head in heads)] for told, by_head in cases.items()]
    every = [row for rows in heads.values() for row in rows.values()]
    over_sinc = [row["sr dB"] - row["sinc dB"] for row in every]

    def below(name: str) -> int:
        return sum(row[f"sr {name}"] < row[f"b-spline {name}"] for row in every)

    def span(name: str) -> str:
        ours, spline = ([row[f"{who} {name}"] for row in every] for who in ("sr", "b-spline"))
        return (
            f"{min(ours):.2f} to {max(ours):.2f} times the truth's "
            f"(B-spline: {min(spline):.2f} to {max(spline):.2f})"
        )

    said = [
        f"The least gain of these {len(every)} cases is {min(row['gain dB'] for row in every):+.2f} dB.",
        f"Over zero-filled sinc interpolation, it is {min(over_sinc):+.2f} dB or more.",
        f"SSIM is below B-spline's in {below('SSIM')} cases, lesions' contrast in {below('lesions')}.",
        f"The mean difference of planes across a slice edge is {span('edges')}, and above the truth's in "
        f"{sum(row['sr edges'] > 1 for row in every)} cases.",
        f"Over that of all neighbouring planes, which interpolation blurs, it is {span('steps')}.",
    ]
    return "\n".join([*table(["slices, voxels", *heads], shown), "", *(f"- {text}" for text in said)])


FIGURES: dict[str, Callable[[Mapping[str, Result]], str]] = {
    "quality": how_good,
    "seconds": seconds,
    "fastest": fastest,
    "degradations": how_steady,
    "precisions": precisions,
    "background": background,
    "memory": large_volume,
    "speed": speed,
    "thick-slices": thick_slices,
    "gpu-on-paper": on_paper,
}


# RESULTS.md


def section(name: str, result: Result) -> str:
    """A result under its name: its circumstances and tables."""
    lines = [f"## {name}", "", measured_by(result), ""]
    if of(name, "bench"):
        lines += table(bench.HEADS, [bench.cells(row) for row in result["rows"]])
        notes = [*bench.failures(result), *result["warnings"]]
        lines += ["", bench.caption(result), *(f"\n**{text}**" for text in notes), ""]
    else:
        lines += told_of(_without_circumstances(result), 3)
    return "\n".join(lines)


def _without_circumstances(result: Result) -> Result:
    return {name: value for name, value in result.items() if name not in CIRCUMSTANCES}


def measured_by(result: Result) -> str:
    """Command, day, machine and versions, as far as they are known, in one line."""
    cores = result.get("cores")
    parts = [f"`{result['command']}`"] if "command" in result else []
    parts += [str(result[name]) for name in ("date", "processor") if name in result]
    parts += [f"{cores} core" + "s" * (cores != 1)] if cores else []
    parts += [f"Python {result['python']}"] if "python" in result else []
    parts += [f"{library} {version}" for library, version in result.get("versions", {}).items()]
    return ", ".join(parts)


def papers_tables(path: Path) -> str:
    """The paper's tables, as `benchmarks.paper.tables` wrote them into a folder, and our notes on them."""
    lines = [f"## {path.parent.name}", ""]
    rows = []
    for name, result in json.loads(path.read_bytes()).items():
        mean, sd = result["mean"], result["sd"]
        cells = [f"{mean[f]:{form}} ± {sd[f]:{form}}" for f, form in (("ssim_2d", ".4f"), ("psnr", ".2f"))]
        rows.append([name, result["title"], *cells, str(len(result["scans"]))])
    lines += table(("experiment", "method", "SSIM 2-D", "PSNR dB", "scans"), rows)
    if (notes := path.with_name("notes.md")).exists():
        lines += ["", notes.read_text().strip()]
    if (whole := path.with_suffix(".md")).exists():
        lines += ["", f"[All figures, beside the paper's]({path.parent.name}/{whole.name})"]
    return "\n".join([*lines, ""])


def told_of(value: Mapping[str, Any], level: int) -> list[str]:
    """Nested figures as Markdown: similar rows as a table, single values as lines, others by heading."""
    plain = {k: v for k, v in value.items() if not _nested(v)}
    lines = [*(f"- {key}: {number(v)}" for key, v in plain.items()), *([""] if plain else [])]
    for key, inner in value.items():
        if key not in plain and inner and key not in RAW:
            lines += [f"{'#' * min(level, 6)} {key}", ""]
            named = inner if isinstance(inner, dict) else {str(n): row for n, row in enumerate(inner)}
            lines += [*rows, ""] if (rows := _table(inner)) else told_of(named, level + 1)
    return lines


def _nested(value: Any) -> bool:
    return isinstance(value, dict) or (
        isinstance(value, list) and any(isinstance(v, dict | list) for v in value)
    )


def _table(value: Any) -> list[str]:
    """A table of similar rows, or of one; numbers in a column have the same precision. Empty if the value is
    nested too deeply for one."""
    if isinstance(value, dict) and not any(map(_nested, value.values())):
        value = [value]
    named = list(value.items()) if isinstance(value, dict) else [("", row) for row in value]
    if not all(isinstance(row, dict) for _, row in named):
        return []
    rows = [_flat(row) for _, row in named]
    cells = [(column, cell) for row in rows for column, cell in row.items()]
    columns = list(dict.fromkeys(c for c, cell in cells if not (c in RAW and isinstance(cell, list))))
    deep = any(_nested(row[c]) for row in rows for c in columns if c in row)
    if deep or (rows != [row for _, row in named] and len(columns) > WIDE):
        return []
    aligned = [_aligned([row.get(c) for row in rows]) for c in columns]
    if isinstance(value, dict):
        columns, aligned = ["", *columns], [[name for name, _ in named], *aligned]
    return table(columns, list(zip(*aligned, strict=True)))


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row whose groups of figures are columns, named after their group too if names would be equal."""
    groups = {key: group if isinstance(group, dict) else {key: group} for key, group in row.items()}
    names = [name for group in groups.values() for name in group]
    return {
        name if names.count(name) == 1 else f"{key}: {name}": value
        for key, group in groups.items()
        for name, value in group.items()
    }


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    return [f"| {' | '.join(line)} |" for line in (heads, ["---"] * len(heads), *rows)]


def _aligned(values: Sequence[Any]) -> list[str]:
    """A column's texts: floats of similar size get the decimals of the longest."""
    floats = [abs(v) for v in values if isinstance(v, float) and v]
    texts = [number(v) for v in values]
    if not floats or max(floats) > 1000 * min(floats) or any("e" in t for t in texts):
        return texts
    decimals = max(len(number(v).partition(".")[2]) for v in values if isinstance(v, float))
    return [f"{v:.{decimals}f}" if isinstance(v, float) else t for v, t in zip(values, texts, strict=True)]


def number(value: Any) -> str:
    """A value as text: four digits of a float, all of an integer."""
    if isinstance(value, list):
        return ", ".join(map(number, value))
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return "–" if value is None else str(value)


if __name__ == "__main__":
    run_script(main)
