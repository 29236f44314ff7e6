"""Checks how runs are grouped, and which tests are applied to the groups."""

import json
from pathlib import Path

import numpy
import pytest
from scipy import stats

from tests.compare.conftest import CORRECT, FILES, IMAGES, LABELS
from vggexp.compare.__main__ import main


def accuracies(setting, seeds):
    return [CORRECT[setting][seed] / IMAGES for seed in seeds]


def check_t_test(pair, reference):
    """Compares a pair with the result of scipy.stats."""
    assert pair["p"] == pytest.approx(reference.pvalue)
    assert pair["holm"] == pytest.approx(reference.pvalue)
    assert pair["interval"] == pytest.approx(list(reference.confidence_interval()))
    assert pair["distinguishable"] == (reference.pvalue < 0.05)
    assert pair["distinguishable"] == (" not " not in pair["sentence"])


def test_the_same_seeds_are_paired(make_group, compare_json):
    (pair,) = compare_json(*make_group("a", range(4)), *make_group("b", range(4)))["pairs"]
    first = accuracies("a", range(4))
    second = accuracies("b", range(4))
    assert pair["test"] == "paired t"
    assert pair["difference"] == pytest.approx(numpy.mean(first) - numpy.mean(second))
    assert " with 4 seeds (paired t, p = " in pair["sentence"]
    check_t_test(pair, stats.ttest_rel(first, second))


def test_other_seeds_have_welchs_test(make_group, compare_json):
    (pair,) = compare_json(*make_group("a", range(4)), *make_group("b", range(3)))["pairs"]
    first = accuracies("a", range(4))
    second = accuracies("b", range(3))
    assert pair["test"] == "Welch t"
    assert pair["difference"] == pytest.approx(numpy.mean(first) - numpy.mean(second))
    assert " with 4 and 3 seeds (Welch t, p = " in pair["sentence"]
    check_t_test(pair, stats.ttest_ind(first, second, equal_var=False))
    assert pair["mcnemar"] == {"refused": "not the same seeds"}


def test_one_run_against_several_is_not_tested(make_group, compare_json):
    (pair,) = compare_json(*make_group("a", [0]), *make_group("b", range(4)))["pairs"]
    expected = accuracies("a", [0])[0] - numpy.mean(accuracies("b", range(4)))
    assert pair["test"] is None
    assert pair["difference"] == pytest.approx(expected)
    assert pair["mcnemar"] == {"refused": "not the same seeds"}
    sentence = " are not tested with 1 and 4 seeds, as A has no repeats: difference +0.0150."
    assert sentence in pair["sentence"]


def test_one_run_each_has_mcnemars_test(make_group, compare_json):
    (pair,) = compare_json(*make_group("a", [1]), *make_group("b", [1]))["pairs"]
    assert pair["test"] == "McNemar"
    assert pair["difference"] == pytest.approx(0.035)
    numbers = "(p = 0.0156, difference +0.0350, 95 % interval +0.0155..+0.0705)"
    assert f"on this test set {numbers}" in pair["sentence"]


def test_a_run_counts_once_and_groups_follow_the_arguments(make_group, compare_json):
    names = make_group("a", range(4)) + make_group("b", range(4))
    result = compare_json(*reversed(names), *names)
    assert [group["group"] for group in result["groups"]] == ["A", "B"]
    assert result["groups"][0]["runs"] == names[4:]
    assert result["groups"][0]["seeds"] == [0, 1, 2, 3]


def test_an_image_counts_once_for_several_seeds(make_run, compare_json):
    names = [make_run(f"a{seed}", seed, 150) for seed in range(3)]
    names += [make_run(f"b{seed}", seed, 140, 0.2) for seed in range(3)]
    counts = compare_json(*names)["pairs"][0]["mcnemar"]
    # Each seed has ten such images, shifted by one: 140..149, 141..150, 142..151.
    assert counts["only_first"] == 12
    assert counts["only_second"] == 0
    assert counts["images"] == IMAGES
    assert counts["p"] == pytest.approx(stats.binomtest(12, 12).pvalue)


def test_several_settings_are_corrected(make_group, compare_json):
    names = [name for setting in "abc" for name in make_group(setting, range(4))]
    pairs = compare_json(*names)["pairs"]
    labels = [(pair["first"], pair["second"]) for pair in pairs]
    assert labels == [("A", "B"), ("A", "C"), ("B", "C")]
    smallest = min(pair["p"] for pair in pairs)
    assert min(pair["holm"] for pair in pairs) == pytest.approx(3 * smallest)
    assert all("Holm's p" in pair["sentence"] for pair in pairs)


@pytest.mark.parametrize(("third", "base"), [(0.4, "D"), (None, "A")])
def test_many_settings_are_tested_against_one(third, base, make_run, compare_json):
    names = [
        make_run(str(index), correct=190 - index, lr=index + 1.0, val=val)
        for index, val in enumerate([0.5, 0.6, third, 0.9, 0.7])
    ]
    result = compare_json(*names)
    assert result["base"] == base
    others = [label for label in "ABCDE" if label != base]
    assert [pair["second"] for pair in result["pairs"]] == others
    assert result["notes"][0].startswith(f"note: of 5 groups, only the pairs with {base}, the ")


def test_a_repeated_seed_begins_another_group(make_run, compare_json):
    before = [make_run(f"before/{seed}", seed, commit="before") for seed in (0, 1)]
    after = [make_run(f"after/{seed}", seed, commit="after") for seed in (0, 1)]
    result = compare_json(*before, *after)
    assert [group["runs"] for group in result["groups"]] == [before, after]
    assert result["differences"]["configuration"] == {}
    (pair,) = result["pairs"]
    assert pair["difference"] == 0
    assert pair["p"] is None
    assert pair["distinguishable"] is None
    assert pair["mcnemar"]["p"] == 1
    assert "as their values show no spread" in pair["sentence"]


def test_one_setting_has_no_pairs(make_run, compare_json):
    names = [make_run(f"a{seed}", seed, 150 + seed) for seed in range(2)]
    result = compare_json(*names)
    assert len(result["groups"]) == 1
    assert result["pairs"] == []


@pytest.mark.parametrize(
    ("changes", "description", "test"),
    [
        (
            {"data": FILES | {"t10k-images-idx3-ubyte": "3"}},
            "other contents of t10k-images-idx3-ubyte",
            "Welch t",
        ),
        (
            {"data": FILES | {"train-images-idx3-ubyte": "3"}},
            "other contents of train-images-idx3-ubyte",
            "paired t",
        ),
        ({"labels": LABELS[::-1]}, "other test labels", "Welch t"),
        ({"labels": LABELS[:160]}, "tested on 200 and 160 images", "Welch t"),
    ],
)
def test_different_data_is_refused_or_noted(
    changes, description, test, make_group, compare_json, capfd
):
    names = [*make_group("a", [0, 1]), *make_group("b", [0, 1], **changes)]
    assert main(names) == 4
    out, error = capfd.readouterr()
    assert out == ""
    assert error == (
        f"vggexp: error: the runs are not of the same data: {description}; "
        "--different-data compares their means all the same\n"
    )
    result = compare_json("--different-data", *names)
    (pair,) = result["pairs"]
    warning = f"warning: the runs are not of the same data ({description})"
    assert result["notes"][0].startswith(warning)
    assert pair["test"] == test
    assert ("refused" in pair["mcnemar"]) == (test == "Welch t")


def test_a_run_without_a_fingerprint_is_noted(make_run, compare_json):
    names = [make_run("a"), make_run("b", lr=0.2)]
    Path("b/env.json").unlink()
    assert compare_json(*names)["notes"] == [
        "warning: no data fingerprint in b: only the test labels were compared",
        "note: the code differs as well (torch, commit, dirty): "
        "it may be the cause of a difference",
    ]


def test_as_many_other_seeds_are_not_paired(make_group, compare_json):
    (pair,) = compare_json(*make_group("a", [0, 1]), *make_group("b", [2, 3]))["pairs"]
    assert pair["test"] == "Welch t"
    reference = stats.ttest_ind(accuracies("a", [0, 1]), accuracies("b", [2, 3]), equal_var=False)
    check_t_test(pair, reference)


def test_seeds_are_paired_in_any_order_of_the_arguments(make_group, compare_json):
    (pair,) = compare_json(*make_group("a", range(4)), *make_group("b", [2, 0, 3, 1]))["pairs"]
    seeds = range(4)
    check_t_test(pair, stats.ttest_rel(accuracies("a", seeds), accuracies("b", seeds)))


@pytest.mark.parametrize(
    ("names", "descriptions"),
    [
        (("vgg11", "vgg13"), ["network=vgg11", "network=vgg13"]),
        (("vgg11", "vgg11"), ["arch.blocks=[[1,64]]", "arch.blocks=[[2,64]]"]),
        ((None, None), ["arch.blocks=[[1,64]]", "arch.blocks=[[2,64]]"]),
    ],
)
def test_a_group_is_described_by_the_name_of_its_network(
    names, descriptions, make_run, compare_json
):
    for index, name in enumerate(names, 1):
        sections = {"arch": {"blocks": [[index, 64]]}, "run": {"network": name}}
        make_run(f"r{index}", sections=sections)
    groups = compare_json("r1", "r2")["groups"]
    assert [group["settings"] for group in groups] == descriptions


def test_copies_of_a_run_are_noted(make_run, compare_json):
    for name, weights in (("a", "0" * 64), ("b", "0" * 64), ("c", "1" * 64)):
        result = Path(make_run(name)) / "result.json"
        result.write_text(json.dumps(json.loads(result.read_text()) | {"weights_sha256": weights}))
    reason = "have the same weights, bit for bit: copies of one run, or a training repeated exactly"
    assert f"note: a and b {reason}" in compare_json("a", "b", "c")["notes"]
    assert not [note for note in compare_json("a", "c")["notes"] if reason in note]


def test_runs_tested_with_different_views(make_run, compare_json):
    make_run("a", sections={"train": {"test_flip": True}})
    make_run("b")
    make_run("c", sections={"train": {"test_flip": True}})
    make_run("d", sections={"train": {"test_shift": 1}})
    warning = (
        "warning: the tests see different views of an image (a, c with mirror images; "
        "b with the image alone; d with shifts by 1 px), which may be the cause of a difference; "
        "`vggexp.evaluate RUN --shift 1` gives the other runs' scores with shifts by 1 px"
    )
    assert warning in compare_json("a", "b", "c", "d")["notes"]
    assert not [note for note in compare_json("a", "c")["notes"] if "mirror" in note]
