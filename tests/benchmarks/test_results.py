"""README.md, docs/ and RESULTS.md state what the benchmarks found."""

import dataclasses
import json
import shutil

import pytest
from udean.benchmarks import results
from udean.runtime import RunError
from udean.trainer.evaluation.evaluate import Summary
from udean.trainer.evaluation.quality import Figures


@pytest.fixture
def folder(tmp_path):
    """A copy of the committed results."""
    return shutil.copytree(results.RESULTS, tmp_path / "results")


def test_the_committed_pages_are_those_of_the_committed_results():
    for path, contents in results.pages().items():
        assert path.read_text() == contents, f"{path.name} is out of date: make results"


def test_pictures_are_small_enough_for_a_repository():
    sizes = {picture.name: picture.stat().st_size for picture in results.RESULTS.rglob("*.png")}
    assert sum(sizes.values()) < 300_000, f"too large for a repository: {sizes}"


def test_no_figure_in_the_readme_is_written_by_hand():
    """All that is said in dB, or as a multiple in time, stands between marks."""
    readme, benchmarks = ((results.ROOT / name).read_text() for name in ("README.md", "docs/benchmarks.md"))
    pages = readme + "".join(page.read_text() for page in (results.ROOT / "docs").glob("*.md"))
    assert {match["name"] for match in results.MARKED.finditer(pages)} >= set(results.FIGURES), (
        "shown nowhere"
    )
    for page in (readme, benchmarks):
        by_hand = [
            line for line in results.MARKED.sub("", page).splitlines() if " dB" in line or "times as" in line
        ]
        assert not by_hand


def test_another_result_is_another_page(folder):
    before = results.pages(folder)
    found = json.loads((folder / "quality.json").read_bytes())
    found["ICBM152 T1, whole volume"]["sr"]["PSNR dB"] = 36.7
    (folder / "quality.json").write_text(json.dumps(found))
    after = results.pages(folder)
    for path in (folder / "RESULTS.md", results.ROOT / "README.md"):
        assert after[path] != before[path] and "| 36.70 |" in after[path]


def test_the_pages_are_the_same_every_time(folder):
    assert results.pages(folder) == results.pages(folder)
    readme = results.ROOT / "README.md"
    assert results.marked(readme.read_text(), results.results(folder)) == readme.read_text()


@pytest.mark.parametrize("name", ["nonsense", "soak-node/nonsense", "soak-node/studies/nonsense"])
def test_a_mark_without_a_figure_is_refused(name):
    with pytest.raises(RunError, match=name):
        results.marked(f"<!-- results:{name} --><!-- end -->", results.results())


def test_a_mark_may_name_any_figure_by_its_path():
    found = {"a": {"command": "x", "k": 1.234567, "by head": {"one": {"dB": {"sr": 3.0}, "n": 1}}}}
    assert results.shown_at(["a", "k"], found) == "1.235"
    table = "|  | sr | n |\n| --- | --- | --- |\n| one | 3 | 1 |"
    assert results.shown_at(["a", "by head"], found) == table
    assert results.shown_at(["a"], found) == f"- k: 1.235\n\n### by head\n\n{table}"
    assert results.shown_at(["a", "*", "one"], {"a": {"x": {"one": 1}, "y": {"one": 2}}}) == "- x: 1\n- y: 2"


def test_the_papers_tables_are_shown_where_they_are(folder):
    one = Figures(30.0, 0.9, 0.91, 30.5, 0.9, 0.9, 0.1, 1.0, 0.02)
    two = dataclasses.replace(one, psnr=32.0)
    summary = dataclasses.asdict(Summary.of({"a": one, "b": two}))
    (folder / "paper-tables").mkdir(exist_ok=True)
    found = {"2x2x2/unpaired/udean": {"title": "UDEAN", "model": "", **summary}}
    (folder / "paper-tables" / "tables.json").write_text(json.dumps(found))
    (folder / "paper-tables" / "notes.md").write_text("What to think of it.\n")
    page = results.pages(folder)[folder / "RESULTS.md"]
    assert "| 2x2x2/unpaired/udean | UDEAN | 0.9100 ± 0.0000 | 31.00 ± 1.00 | 2 |" in page
    assert "What to think of it." in page


def test_any_nested_figures_become_tables():
    value = {
        "a": 1,
        "by engine": {"x": {"s": 1.5, "n": 2}, "y": {"s": 11.25}},
        "rows": [{"k": "v"}, {"k": "w"}],
    }
    text = "\n".join(results.told_of(value, 3))
    assert "- a: 1" in text and "### by engine" in text
    assert "| x | 1.50 | 2 |" in text and "| y | 11.25 | – |" in text and "| v |\n| w |" in text


def test_the_benchmarks_page_shows_our_engines_against_the_pytorch_path(folder):
    path = {"name": "PyTorch path fp32", "kind": "monai", "against": "PyTorch path fp32"}
    speed = {"median": 2.5, "low": 2.25, "high": 2.75}
    figures = {"gflops": 9.0, "share_of_peak": 0.5, "seconds": 1.0, "speed_up": speed, "largest_error": 0.01}
    ours = {"name": "openvino bf16", "kind": "udean", "against": "openvino fp32", **figures, "psnr": 57.0}
    gone = {"name": "tensorrt fp16", "kind": "udean", "failed": "There is no GPU."}
    document = {
        **json.loads((folder / "quality.json").read_bytes()),
        **{"model": {"name": "m", "window": [64, 64], "gflop_a_window": 1.0}, "shape": [9, 9, 3]},
        **{"device": "cpu", "threads": 2, "overlap": 0.5},
        **{
            "rows": [{**path, **figures, "psnr": None}, ours, gone],
            "warnings": ["Too busy."],
        },
        **{"windows": {"ours": 1, "monai": 1, "same_places": True}, "repeats": 5, "load_before": 0.0},
        **{"roofs": {"gflops": {"fp32": 18.0}, "copy_gb_per_s": 5.0}},
        **{"agreement": {"same_weights": {"psnr": 140.0}, "own_weights": {"psnr": 29.0}}},
    }
    (folder / "bench-m.json").write_text(json.dumps(document))
    pages = results.pages(folder)
    page, shown = (pages[path] for path in (folder / "RESULTS.md", results.ROOT / "docs/benchmarks.md"))
    assert "| openvino bf16 | 2.50 (2.25 to 2.75) | 57.0 |" in shown and "tensorrt fp16" not in shown
    assert "tensorrt fp16 failed: There is no GPU." in page and "**Too busy.**" in page
