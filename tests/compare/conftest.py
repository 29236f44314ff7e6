import json
from pathlib import Path

import numpy
import pytest
import yaml

from vggexp.compare.__main__ import main
from vggexp.runs.directory import write_result
from vggexp.runs.jsonl import write_json

IMAGES = 200
LABELS = numpy.arange(IMAGES) % 4
FILES = {"train-images-idx3-ubyte": "1", "t10k-images-idx3-ubyte": "2"}
ENVIRONMENT = {
    "versions": {"torch": "2.14.1"},
    "commit": "a" * 40,
    "dirty": False,
    "host": "x",
    "data": FILES,
}
LEARNING_RATES = {"a": 0.1, "b": 0.2, "c": 0.3}
CORRECT = {  # number of correct images for the seeds 0 to 3
    "a": [150, 160, 155, 158],
    "b": [140, 153, 143, 152],
    "c": [100, 90, 80, 95],
}


@pytest.fixture
def make_run(tmp_path, monkeypatch):
    """make_run(name, seed=0, ...) makes a finished run in the current folder, returns its name."""
    monkeypatch.chdir(tmp_path)

    def make(
        name, seed=0, correct=150, lr=0.1, labels=LABELS, val=0.5, sections=None, **environment
    ):
        folder = Path(name)
        folder.mkdir(parents=True)
        config = {
            "data": {"name": "fashion_mnist", "workers": seed},
            "optimizer": {"lr": lr},
            "seed": seed,
            **(sections or {}),
        }
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        write_json(folder / "env.json", ENVIRONMENT | environment)
        hits = numpy.roll(numpy.arange(len(labels)) < correct, seed)
        predicted = numpy.where(hits, labels, (labels + 1) % 4)
        probs = numpy.eye(10, dtype=numpy.float32)[predicted]
        numpy.savez_compressed(folder / "predictions.npz", scores=probs, labels=labels)
        metrics = {"test/accuracy": correct / len(labels), "val/accuracy": val}
        write_result(folder, "finished", **metrics)
        return name

    return make


@pytest.fixture
def make_group(make_run):
    """make_group("a", seeds, ...) makes one run for each seed and returns the names."""

    def make(setting, seeds, **options):
        return [
            make_run(
                f"{setting}{seed}", seed, CORRECT[setting][seed], LEARNING_RATES[setting], **options
            )
            for seed in seeds
        ]

    return make


@pytest.fixture
def compare_json(capfd):
    """compare_json(run, ...) returns what the command prints with --json."""

    def run(*argv):
        assert main([*argv, "--json"]) == 0
        return json.loads(capfd.readouterr().out)

    return run
