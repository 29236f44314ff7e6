"""Checks which runs are of the same data."""

from tests.report.conftest import make_record
from vggexp.report.data_sets import describe_data, group_by_data

FILES = {"train": "a" * 64, "test": "b" * 64}
OTHER_FILES = {"train": "c" * 64, "test": "b" * 64}
FOLDER = {"data.root": "/images/pets"}


def make_folder_run(name, data_files, root="/images/pets"):
    overrides = ("data=image_folder", "data.classes=2")
    return make_record(name, *overrides, keys={"data.root": root}, data_files=data_files)


def names_of(*runs):
    """Returns {name of a data set: names of its runs}."""
    return {group.name: [run.name for run in group.runs] for group in group_by_data(runs)}


def test_the_size_of_the_images_is_a_setting():
    runs = [
        make_record("a", data_files=FILES),
        make_record("b", "data.resize=32", data_files=FILES),
    ]
    assert names_of(*runs) == {"fashion_mnist": ["a", "b"]}


def test_the_number_of_training_images_is_a_setting():
    runs = [
        make_record("a", data_files=FILES),
        make_record("b", "data.limit=640", data_files=FILES),
    ]
    assert names_of(*runs) == {"fashion_mnist": ["a", "b"]}


def test_other_contents_of_a_folder_are_other_data():
    first = make_folder_run("a", FILES)
    second = make_folder_run("b", OTHER_FILES)
    names = names_of(first, second, make_folder_run("c", FILES))
    assert sorted(names.values()) == [["a", "c"], ["b"]]
    assert all(name.startswith("image_folder pets ") for name in names)


def test_a_damaged_fingerprint_is_other_data():
    damaged = {**FILES, "test": "\ud800"}  # a character without bytes in UTF-8
    names = names_of(make_record("a", data_files=FILES), make_record("b", data_files=damaged))
    assert sorted(names.values()) == [["a"], ["b"]]


def test_a_copied_folder_is_the_same_data():
    moved = make_folder_run("b", FILES, root="/elsewhere")
    assert names_of(make_folder_run("a", FILES), moved) == {"image_folder pets": ["a", "b"]}


def test_a_run_that_read_no_data_joins_the_data_of_its_name():
    failed = make_record("c", state="failed")
    runs = [failed, make_record("a", data_files=FILES), make_record("m", "data=mnist")]
    assert names_of(*runs) == {"fashion_mnist": ["c", "a"], "mnist": ["m"]}


def test_the_largest_data_set_is_first():
    runs = [make_folder_run("a", OTHER_FILES)]
    runs += [make_record(name, data_files=FILES) for name in "bc"]
    assert list(names_of(*runs)) == ["fashion_mnist", "image_folder pets"]


def test_generated_images_are_described_by_their_number_and_size():
    config = {"data.name": "synthetic", "data.images": 64, "data.size": 32}
    assert describe_data(config) == "synthetic images=64 size=32"


def test_a_configuration_of_another_version_has_a_description():
    assert describe_data({}) == "null"
