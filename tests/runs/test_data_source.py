"""Tests that the images of a folder, and not its path, are part of which run it is."""

import json
import shutil
from pathlib import Path

import pytest

from tests.conftest import TINY, write_images
from tests.data.torchvision_files import write_torchvision
from vggexp.config.compose import parse_command
from vggexp.config.derived import input_spec
from vggexp.config.run_id import run_hash
from vggexp.cost_plan import plan_costs
from vggexp.data import image_folder, torchvision_data
from vggexp.errors import ConfigError, DataError
from vggexp.runs.data_source import check_pinned_data, count_data, pin_data
from vggexp.sweep.expand import compose_outline, compose_run, expand_sweep

FOLDER = ["data=image_folder", "data.resize=32", "data.batch_size=4", "data.workers=0"]
FOLDER += ["arch=lenet", "device.threads=1", "train.epochs=1", "data.val_fraction=0.25"]


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Folder a; b with other images under the same names; c, a copy of a."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    counts = {"train": 8, "test": 4}
    write_images(tmp_path / "a", counts, lambda _: (32, 32), "bmp")
    shutil.copytree("a", "c")
    shutil.copytree("a", "b")
    image = tmp_path / "b/train/cat/0.bmp"
    content = bytearray(image.read_bytes())
    content[-1] ^= 1  # one bit of one pixel
    image.write_bytes(content)


def config(root, *overrides):
    argv = [*FOLDER, f"data.root={root}", "device=cpu", *overrides]
    return pin_data(compose_run(parse_command(argv)))


def test_the_images_make_the_name(folders):
    assert run_hash(config("a")) != run_hash(config("b"))
    assert run_hash(config("a")) == run_hash(config("c"))
    assert run_hash(config("a")) == run_hash(config(Path("a").resolve()))


def test_a_hash_in_the_configuration_is_checked(folders):
    digest = config("a").data.sha256
    assert config("c", f"data.sha256={digest}").data.sha256 == digest
    with pytest.raises(DataError, match=f"data.root=b: .* not data.sha256={digest}"):
        config("b", f"data.sha256={digest}")


def test_images_that_change_while_a_run_starts_are_refused(folders):
    pinned = config("a")
    check_pinned_data(pinned, image_folder.index_folder(Path("a")).fingerprint)
    with pytest.raises(DataError, match=r"data\.root=a: has changed while the run started"):
        check_pinned_data(pinned, image_folder.index_folder(Path("b")).fingerprint)


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("data.batch_size=13", "data.batch_size=13: more than the 12 training images; choose 12"),
        ("data.val_fraction=0.05", "data.val_fraction=0.05: 1 validation images for 2 classes"),
    ],
)
def test_what_the_count_of_images_forbids_is_refused(folders, override, problem):
    """Two classes of eight images, of which a quarter are for validation."""
    with pytest.raises(ConfigError, match=problem):
        config("a", override)


def test_a_sweep_checks_the_count_of_images_for_every_job(folders):
    search = parse_command(["-m", *FOLDER, "data.root=a", "data.batch_size=4,13"])
    with pytest.raises(ConfigError, match=r"^sweep job 2 of 2: data\.batch_size=13: more"):
        expand_sweep(search, compose_outline(search))


def test_the_split_makes_the_name(folders):
    with pytest.raises(ConfigError, match=r"test_fraction=0\.2: a/test is the test set; leave the"):
        config("a", "data.test_fraction=0.2")
    whole = run_hash(config("a"))
    shutil.rmtree("a/test")
    assert run_hash(config("a")) != whole
    assert run_hash(config("a", "data.test_fraction=0.2")) == run_hash(config("a"))
    assert run_hash(config("a", "data.test_fraction=0.5")) != run_hash(config("a"))
    assert run_hash(config("a/train")) == run_hash(config("a"))


def test_other_data_sets_stay_as_they_are():
    synthetic = compose_run(parse_command(TINY))
    assert pin_data(synthetic) is synthetic


@pytest.mark.process
def test_other_images_are_another_run(folders, command):
    for root, is_finished in (("a", False), ("b", False), ("a", True), ("c", True)):
        code, out, err = command(*FOLDER, f"data.root={root}")
        assert (code, err) == (0, "")
        assert out.startswith("already finished: ") == is_finished
    assert len(list(Path("outputs").iterdir())) == 2


@pytest.mark.process
def test_a_name_that_belongs_to_other_images_is_refused(folders, command):
    assert command(*FOLDER, "data.root=a", "run.name=mine")[0] == 0
    code, out, err = command(*FOLDER, "data.root=b", "run.name=mine")
    assert (code, out) == (4, "")
    assert "(data.sha256: run has " in err
    assert "its images were those of data.root=a; choose another run.name or resume=force" in err
    assert err.count("\n") == 1
    code, out, _ = command(*FOLDER, "data.root=b", "run.name=mine", "resume=force")
    assert code == 0
    assert "warning: continuing, but data.sha256: run has " in out
    assert command(*FOLDER, "data.root=b", "run.name=mine")[1].startswith("already finished")


@pytest.mark.process
def test_a_run_of_version_0_1_0_is_compared_by_names_and_sizes(folders, command):
    assert command(*FOLDER, "data.root=a", "run.name=mine")[0] == 0
    forget_contents(Path("outputs/mine"))
    code, out, err = command(*FOLDER, "data.root=c", "run.name=mine")
    assert (code, err) == (0, "")
    assert "continued after step " in out
    forget_contents(Path("outputs/mine"))
    Path("b/train/cat/9.bmp").write_bytes(Path("a/train/cat/1.bmp").read_bytes())
    code, _, err = command(*FOLDER, "data.root=b", "run.name=mine")
    assert code == 4
    assert "the data has changed since this run began (test, train)" in err


def forget_contents(run_dir):
    """Makes a run directory one of version 0.1.0, which hashed names and sizes."""
    import yaml

    from vggexp.training import checkpoint

    index = image_folder.index_folder(Path("a"))
    text = yaml.safe_load((run_dir / "config.yaml").read_text())
    del text["data"]["sha256"]
    (run_dir / "config.yaml").write_text(yaml.safe_dump(text))
    environment = json.loads((run_dir / "env.json").read_text())
    environment["data"] = index.earlier_fingerprint
    (run_dir / "env.json").write_text(json.dumps(environment))
    for path in (run_dir / "checkpoints").glob("*.pt"):
        saved = checkpoint.load(path)
        saved["data"] = index.earlier_fingerprint
        saved["identity"].pop("data.sha256", None)
        checkpoint.save(path, saved)


@pytest.mark.process
def test_a_sweep_trains_on_each_folder(folders, command):
    code, out, _ = command("-m", *FOLDER, "data.root=a,b")
    assert code == 0
    assert out.count("\nstarted ") + out.startswith("started ") == 2
    rows = [line.split() for line in out.splitlines() if line.startswith("|")]
    assert rows[0][1] == "data.root"
    assert {row[1] for row in rows[2:]} == {"a", "b"}
    assert len(list(Path("outputs").glob("*/result.json"))) == 2
    code, _, err = command("-m", *FOLDER, "data.root=a,c")
    assert code == 2
    assert "give data.root one value" in err


def test_a_search_over_folders_is_named_after_their_contents(folders):
    def name():
        axis = ["-m", "hydra/sweeper=optuna", "data.root=a,b"]
        search = parse_command([*FOLDER, *axis])
        return expand_sweep(search, compose_outline(search)).name

    before = name()
    assert name() == before
    Path("b/train/cat/1.bmp").write_bytes(Path("b/train/cat/2.bmp").read_bytes())
    assert name() != before


TORCHVISION = ["data=torchvision", "data.batch_size=4", "data.val_fraction=0.25", "device=cpu"]
TORCHVISION += ["arch=vgg7_bn", "data.resize=32", "data.workers=0"]


@pytest.fixture
def food101(tmp_path, monkeypatch):
    """Overrides of Food101 in folder a; b, a copy of it."""
    monkeypatch.chdir(tmp_path)
    write_torchvision("Food101", tmp_path / "a", monkeypatch)
    shutil.copytree("a", "b")
    return [*TORCHVISION, "data.name=Food101"]


def torchvision_config(*overrides):
    return compose_run(parse_command(overrides))


def test_torchvision_counts_classes_and_images(food101):
    composed = torchvision_config(*food101, "data.root=a")
    assert composed.data.classes is None
    counted = count_data(composed)
    spec = input_spec(counted)
    assert (spec.channels, spec.size, spec.classes) == (3, 32, 2)
    assert (spec.train_images, spec.val_images, spec.test_images) == (18, 6, 12)
    assert count_data(counted) is counted


def test_the_contents_of_a_torchvision_set_make_the_name(food101):
    first = pin_data(torchvision_config(*food101, "data.root=a"))
    copy = pin_data(torchvision_config(*food101, "data.root=b", "data.classes=2"))
    assert run_hash(first) == run_hash(copy)
    image = next(Path("b").rglob("train1.jpg"))
    image.write_bytes(Path("a/food-101/images/waffles/train3.jpg").read_bytes())
    assert run_hash(pin_data(torchvision_config(*food101, "data.root=b"))) != run_hash(first)


def test_decoding_every_epoch_is_automatic(food101):
    runs = []
    for cache in ("auto", "none", "ram", "device"):
        command = [*food101, "data.root=a", f"data.cache={cache}"]
        runs.append(run_hash(pin_data(torchvision_config(*command))))
    assert runs[0] == runs[1]
    assert runs[2] == runs[3] != runs[0]


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("data.classes=3", "data.classes=3: Food101 has 2"),
        ("data.train_images=7", "data.train_images=7: Food101 has 24"),
        ("data.batch_size=19", "data.batch_size=19: more than the 18 training images; choose 18"),
        ("data.val_fraction=0.05", "data.val_fraction=0.05: 1 validation images for 2 classes"),
    ],
)
def test_what_a_torchvision_set_forbids_is_refused(food101, override, problem):
    with pytest.raises(ConfigError, match=f"^{problem}"):
        count_data(torchvision_config(*food101, "data.root=a", override))


def test_a_plan_says_that_the_files_are_missing(tmp_path):
    config = torchvision_config(*TORCHVISION, "data.name=SVHN", f"data.root={tmp_path}")
    expected = (
        f"SVHN: {tmp_path} does not hold its files, or they are damaged "
        r"(a run with data.download=true fetches them; data.root=FOLDER has them elsewhere)"
    )
    with pytest.raises(DataError) as caught:
        plan_costs(config)
    assert str(caught.value) == expected


def test_a_dry_run_downloads_nothing(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise AssertionError

    monkeypatch.setattr(torchvision_data, "_download", refuse)
    command = [*TORCHVISION, "-m", "data.name=SVHN", f"data.root={tmp_path}", "seed=1,2"]
    search = parse_command([*command, "sweep.dry_run=true"])
    with pytest.raises(DataError, match=r"SVHN: .* does not hold its files"):
        expand_sweep(search, compose_outline(search))


def test_given_numbers_of_a_data_set_are_checked():
    data = [
        "data=torchvision",
        "data.name=FakeData",
        "+data.size=200",
        "+data.image_size=[1,32,32]",
    ]
    numbers = ["data.classes=3", "data.train_images=160", "data.test_images=40"]
    config = compose_run(parse_command([*data, *numbers, "data.batch_size=32", "arch=lenet"]))
    with pytest.raises(ConfigError, match=r"^data\.classes=3: FakeData has 10$"):
        pin_data(config)
