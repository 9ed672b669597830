"""Every figure that is shown, from the JSON that benchmarks wrote: RESULTS.md, README, docs/.

    python -m udean.benchmarks.results

In README.md and docs/ a figure stands between the marks `<!-- results:NAME -->` and `<!-- end -->`; `FIGURES`
has the names. The same JSON gives the same text, and a test fails if a page says something else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..runtime.errors import RunError
from ..runtime.system.files import atomic
from . import adaptation, quality, through_plane, tissue
from .common import RESULTS, run_script
from .engines import table as bench

ROOT = Path(__file__).parents[1]
RAW = ("runs", "all runs", "losses")  # every repetition; the medians are shown
CIRCUMSTANCES = ("command", "date", "processor", "cores", "python", "versions")
MARKED = re.compile(r"<!-- results:(?P<name>[\w-]+) -->.*?<!-- end -->", re.DOTALL)
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
        if match["name"] not in FIGURES:
            raise RunError(
                f"A page refers to a figure {match['name']}, which benchmarks/results.py does not know."
            )
        value = FIGURES[match["name"]](found)
        gap = "\n\n" if "\n" in value else ""
        return f"<!-- results:{match['name']} -->{gap}{value}{gap}<!-- end -->"

    return MARKED.sub(figure, text)


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


def ablated(found: Mapping[str, Result]) -> str:
    """The embedded model's recipe, one change at a time: gain in tissue over the better interpolation."""
    result = found["ablation"]
    base = result["rows"]["interpolations"]
    rows = []
    for name, by_seed in result["rows"].items():
        if name == "interpolations" or not by_seed:
            continue
        gains = [
            "/".join(f"{by_seed[seed][c][head] - base[c][head]:+.2f}" for seed in sorted(by_seed))
            for head in next(iter(base.values()))
            for c in base
        ]
        rows.append([name, f"{next(iter(by_seed.values()))['parameters']:,}", *gains])
    heads = [f"{head}, {c}" for head in next(iter(base.values())) for c in base]
    return "\n".join(table(["changed", "parameters", *heads], rows))


def adapted(found: Mapping[str, Result], names: Sequence[str]) -> str:
    """The gain from adapting to unknown degradations, in tissue: a table of some rows for each scanner."""
    tables = []
    for target, result in found["adaptation"]["targets"].items():
        rows, heads = [], list(result["rows"]["interpolations"]["figures"])
        for name in names:
            if row := result["rows"].get(name):
                gain = f"{row['gain']:+.2f}" if name not in adaptation.MEASURED else ""
                spread = f" ± {row['sd']:.2f}" if "sd" in row else ""
                told = [str(row.get(key, "")) for key in ("steps", "seeds")]
                figures = [f"{row['figures'][head]:.2f}" for head in heads]
                rows.append([name, *figures, gain + spread, *told])
        tables += [f"**{target}**", "", *table(["PSNR dB", *heads, "gain", "steps", "seeds"], rows), ""]
    return "\n".join(tables).strip()


def ahead(found: Mapping[str, Result]) -> str:
    """What both of UDEAN's adaptations gain over each alone, seed by seed: a table."""
    rows = [
        [target, *(f"{a['mean']:+.2f} ± {a['sd']:.2f}" for a in result["ahead"].values())]
        for target, result in found["adaptation"]["targets"].items()
    ]
    return "\n".join(table(["dB", *(f"over {name}" for name in adaptation.ALONE)], rows))


def chosen(found: Mapping[str, Result]) -> str:
    """How well choosing a checkpoint without truth agrees with the truth: a table."""
    known = {name: t["selection"] for name, t in found["adaptation"]["targets"].items() if t["selection"]}
    if not known:
        return "Not measured yet."
    heads = max((list(row) for row in known.values()), key=len)
    rows = [[name, *(f"{row[h]:g}" if h in row else "" for h in heads)] for name, row in known.items()]
    return "\n".join(table(["correlation with truth", *heads], rows))


def adapt_command(found: Mapping[str, Result]) -> str:
    """The results of udean-adapt on whole scans: a table."""
    rows = []
    for scan, run in found["adaptation"]["udean-adapt"].items():
        outcome = f"not written: {run['refused']}" if run["refused"] else f"{run['gain']:+.2f} dB"
        rows.append([scan, str(run["steps"]), f"{run['processor minutes']:.1f}", run["read off"], outcome])
    heads = ["scan", "steps", "processor minutes", "read off it", "in tissue of a head acquired so"]
    return "\n".join(table(heads, rows)) if rows else "Not measured yet."


def soaked(found: Mapping[str, Result]) -> str:
    """The soak tests of node and server and their outcome: two tables."""
    lines: list[str] = []
    for name, title in (("soak-node", "DICOM node"), ("soak-mrd", "MRD server")):
        rows = [[key, number(value)] for key, value in found[name].items() if key not in CIRCUMSTANCES]
        lines += [*table([title, ""], rows), ""]
    return "\n".join(lines).strip()


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


def how_true(found: Mapping[str, Result]) -> str:
    """The share of tissue in which the interval of expected errors holds: a sentence and a table."""
    result = found["error-map"]
    heads = result["whole heads, in tissue"]
    columns = list(next(iter(heads.values())))
    rows = [
        [head, *(f"{row[c]:.1%}" if c == columns[0] else f"{row[c]:.2f}" for c in columns)]
        for head, row in heads.items()
    ]
    k = result["interval, times the map"]
    return "\n".join([f"For the embedded model k is {k:.2f}. Counted:", "", *table(["head", *columns], rows)])


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
    "ablations": ablated,
    "adaptation": partial(adapted, names=(*adaptation.MEASURED, *adaptation.ROWS)),
    "adaptation-tried": partial(adapted, names=("embedded", *adaptation.TRIED, "udean")),
    "adaptation-ahead": ahead,
    "adaptation-choice": chosen,
    "adaptation-command": adapt_command,
    "error-map": how_true,
    "seconds": seconds,
    "fastest": fastest,
    "degradations": how_steady,
    "precisions": precisions,
    "background": background,
    "memory": large_volume,
    "speed": speed,
    "soak": soaked,
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
        # Some benchmarks also use "command" for the whole command's figures.
        known = CIRCUMSTANCES if isinstance(result.get("command"), str) else CIRCUMSTANCES[1:]
        lines += told_of(_without({k: v for k, v in result.items() if k not in known}), 3)
    return "\n".join(lines)


def measured_by(result: Result) -> str:
    """Command, day, machine and versions, as far as they are known, in one line."""
    command, cores = result.get("command"), result.get("cores")
    parts = [f"`{command}`"] if isinstance(command, str) else []
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
    lines = [f"- {key}: {number(v)}" for key, v in plain.items()]
    lines += [""] if plain else []
    for key, inner in value.items():
        if key in plain:
            continue
        lines += [f"{'#' * min(level, 6)} {key}", ""]
        rows = inner if isinstance(inner, dict) else {str(n): row for n, row in enumerate(inner)}
        if not any(_nested(row) for row in rows.values()):
            lines += [*_table({"": rows}), ""]
        elif all(isinstance(row, dict) and not any(map(_nested, row.values())) for row in rows.values()):
            lines += [*_table(rows if isinstance(inner, dict) else list(rows.values())), ""]
        else:
            lines += told_of(rows, level + 1)
    return lines


def _without(value: Any) -> Any:
    """A result without its raw figures."""
    if isinstance(value, dict):
        return {k: _without(v) for k, v in value.items() if k not in RAW}
    return [_without(v) for v in value] if isinstance(value, list) else value


def _nested(value: Any) -> bool:
    return isinstance(value, dict) or (
        isinstance(value, list) and any(isinstance(v, dict | list) for v in value)
    )


def _table(rows: Mapping[str, Mapping[str, Any]] | Sequence[Mapping[str, Any]]) -> list[str]:
    """A table of similar rows, in mappings by name; numbers in a column have the same precision."""
    named = list(rows.items()) if isinstance(rows, Mapping) else [("", row) for row in rows]
    names = any(name for name, _ in named)
    columns = list(dict.fromkeys(column for _, row in named for column in row))
    aligned = {c: _aligned([row.get(c) for _, row in named]) for c in columns}
    cells = [
        [*([name] if names else []), *(aligned[c][n] for c in columns)] for n, (name, _) in enumerate(named)
    ]
    return table([*([""] if names else []), *columns], cells)


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
