"""The adaptation benchmark: its rows can be trained, and its table says what the runs found."""

import pytest
from udean.benchmarks import adaptation, results
from udean.runtime.system.files import write_json
from udean.trainer.methods import METHODS


@pytest.fixture
def cohort(tmp_path, monkeypatch):
    monkeypatch.setattr(adaptation, "_acquired", lambda path, *_: f"lr-{path}")
    return adaptation.Cohort(tmp_path, ["a"], ["b"], ["c"], ["d"])


@pytest.mark.parametrize("name", adaptation.ALL)
def test_every_row_is_a_configuration_that_is_told_no_more_than_it_may(cohort, name):
    config = adaptation._config(cohort, adaptation.ALL[name], name, "b", 100, 3)
    assert (config.schedule.steps, config.schedule.seed) == (100, 3)
    told = config.degradation == adaptation.TARGETS[adaptation.LETTERS["b"]]
    assert told == (name == "bound")
    if METHODS[config.method].draws == "pairs":
        assert "b" not in str(config.data.target) and not config.data.validation_hr
    else:
        assert config.data.target == ("lr-b",) and config.schedule.select == "auto"


def test_what_the_command_said_is_found_again():
    kept = adaptation.said(
        "m.onnx: +1.25 dB in tissue of a head so acquired\nRead off your scans: a blur\n",
        "Adapting: step 1 of 90, high_band 0.1\n",
    )
    assert kept == {"steps": 90, "gain": 1.25, "read off": "a blur", "refused": ""}
    told = "Not written: lesions of radius 1.5 voxels keep 0.30 of their contrast. m.html shows both."
    assert adaptation.said(told, "")["refused"] == "lesions of radius 1.5 voxels keep 0.30 of their contrast"


def test_the_table_holds_means_and_spreads_of_the_longest_runs_only(tmp_path):
    def write(row, letter, steps, seed, figures, **more):
        more |= {"steps": steps, "seed": seed} if steps else {}
        path = tmp_path / "results" / f"{letter} {row} {steps} {seed}.json"
        path.parent.mkdir(exist_ok=True)
        write_json(path, {"row": row, "figures": {"x": figures}, **more})

    write("interpolations", "a", 0, 0, {"tricubic": 30.0, "sinc": 31.0})
    write("embedded", "a", 0, 0, {"held": 32.0, "network alone": 35.0})
    write("bound", "a", 10, 0, {"network alone": 50.0})
    for seed, psnr in enumerate((33.0, 34.0, 35.0)):
        # At each checkpoint, what is chosen by is right about two of three.
        watched = [(1, 3.0, 30.0), (2, 1.0, 29.0), (3, 2.0 + seed, 31.0 + seed)]
        told = [dict(zip(("step", "selection", "validation_psnr"), w, strict=True)) for w in watched]
        write("bound", "a", 20, seed, {"network alone": psnr}, checkpoints=told)
    (target,) = (found := adaptation.summary(tmp_path))["targets"].values()
    bound = target["rows"]["bound"]
    assert bound == {"figures": {"x": 34.0}, "gain": 2.0, "sd": 1.0, "steps": 20, "seeds": 3}
    assert target["rows"]["interpolations"]["figures"] == {"x": 31.0}
    chosen = target["selection"]
    assert chosen["between runs"] == 1 and (chosen["lost, mean"], chosen["lost, most"]) == (1.0, 2.0)
    shown = results.shown_at(["adaptation", "targets", "*", "rows"], {"adaptation": found})
    assert "|  | x | gain | sd | steps | seeds |" in shown and "| bound | 34 | 2 | 1 | 20 | 3 |" in shown
    assert tmp_path.name not in shown


def test_both_adaptations_are_compared_with_each_alone_seed_by_seed(tmp_path):
    (tmp_path / "results").mkdir()
    rows = {"udean": (33.0, 36.0), "udean, image only": (32.0, 34.0), "udean, features only": (31.0, 31.0)}
    known = {"interpolations": {"sinc": 30.0}, "embedded": {"held": 30.0}}
    for row, figures in known.items():
        write_json(tmp_path / "results" / f"b {row} 0 0.json", {"row": row, "figures": {"x": figures}})
    for row, seeds in rows.items():
        for seed, psnr in enumerate(seeds):
            result = {"row": row, "figures": {"x": {"network alone": psnr}}, "steps": 9, "seed": seed}
            write_json(tmp_path / "results" / f"b {row} 9 {seed}.json", result)
    (target,) = adaptation.summary(tmp_path)["targets"].values()
    alone = {"image only": (1.5, 0.707), "features only": (3.5, 2.121)}
    assert target["ahead"] == {
        f"udean, {name}": {"mean": mean, "sd": sd, "seeds": 2} for name, (mean, sd) in alone.items()
    }
