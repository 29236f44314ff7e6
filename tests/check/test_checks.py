"""Each planted fault is found by the check that is meant for it, with an override that cures it."""

import json

import pytest
import torch

from vggexp.check import checks
from vggexp.check.__main__ import format_finding, main
from vggexp.check.checks import (
    MIN_STEPS,
    Finding,
    Steps,
    caption_of,
    check_images,
    check_labels,
    check_layers,
    check_memorizing,
    forecast,
    judge_labels,
    judge_steps,
    make_subject,
    run_checks,
    train_steps,
)
from vggexp.check.labels import Sample
from vggexp.config.compose import parse_command
from vggexp.sweep.expand import compose_run

DIGITS = ["data=digits", "device=cpu", "device.precision=fp32", "device.threads=1"]
SMALL = [*DIGITS, "arch.blocks=[[1,8],[1,16]]", "arch.hidden=[32]", "data.batch_size=32"]
DEEP = [*DIGITS, "data.resize=32", "arch.width=0.04", "arch.hidden=[16]", "data.batch_size=32"]


def subject_of(*overrides):
    return make_subject(compose_run(parse_command([*overrides])))


@pytest.fixture
def subject():
    return subject_of(*SMALL)


def by_name(findings):
    return {finding.check: finding for finding in findings}


def test_a_sound_configuration_passes_every_check(subject):
    findings = list(run_checks(subject, seconds=2))
    assert [finding for finding in findings if finding.cure] == []
    assert [finding.check for finding in findings] == [
        "images",
        "classes",
        "validation labels",
        "test labels",
        "initial loss",
        "signal",
        "gradient",
        "logits",
        "steps",
        "memorizing",
        "validation",
        "test",
        "forecast",
    ]


def test_equal_images_are_found(subject):
    subject.batch[0][:] = subject.batch[0][0].clone()
    assert "all the same" in check_images(subject).cure


def test_labels_of_the_next_images_are_found(subject):
    for loader in (subject.data.train, subject.data.val, subject.data.test):
        loader.labels = loader.labels.roll(1)
    findings = by_name(check_labels(subject))
    assert "--images" in findings["validation labels"].cure
    assert "--images" in findings["test labels"].cure


def test_training_labels_that_are_one_higher_are_found(subject):
    subject.data.train.labels = (subject.data.train.labels + 1) % 10
    assert "--images" in by_name(check_labels(subject))["test labels"].cure


def test_labels_of_too_few_images_of_a_class_are_not_judged():
    labels = torch.tensor([0] * 60 + [1] * 4)
    sample = Sample(torch.zeros(64, 1).double(), labels)
    assert judge_labels(sample, sample, 2, "test").text == "not judged: 64 images of 2 classes"


def test_a_class_without_images_is_found(subject):
    subject.data.train.labels = subject.data.train.labels.clamp(min=1)
    assert by_name(check_labels(subject))["classes"].cure == "0 has none; check the labels"


def test_a_class_that_only_the_sample_lacks_is_not_missing(monkeypatch, subject):
    monkeypatch.setattr(checks, "SAMPLE_IMAGES", 8)  # fewer than classes
    classes = by_name(check_labels(subject))["classes"]
    assert classes == Finding("classes", "10 of 10 classes in 1,293 images")


def test_without_a_finite_loss_the_time_is_unknown(subject):
    finding = forecast(subject, Steps(None))
    assert finding.text.startswith("unknown time for 5 epochs, ")


def test_initial_weights_that_lose_the_signal_are_found():
    subject = subject_of(*DEEP, "arch=vgg19", "arch.init=paper", "optimizer=sgd")
    findings = by_name(check_layers(subject))
    assert findings["signal"].cure.endswith("try arch.norm=batch, or arch.init=kaiming")
    assert findings["logits"].cure


@pytest.mark.parametrize("override", ["optimizer.lr=10", "optimizer.lr=1"])
def test_a_rate_that_is_too_large_is_found(override):
    subject = subject_of(*SMALL, override)
    finding = judge_steps(subject, train_steps(subject, 3))
    cures = {
        "explodes": "try optimizer.lr=0.003",
        "died": "try optimizer.lr=0.01, or optimizer.lr=0.01 arch.norm=batch",
    }
    problem, cure = finding.cure.split("; ")  # which of them, by the number of steps in time
    assert cure == cures[problem.split()[-1]]


def test_a_loss_that_explodes_gets_the_advice_for_steps_that_are_too_large():
    subject = subject_of(*SMALL, "arch.norm=batch", "optimizer.lr=0.1")
    finding = judge_steps(subject, Steps(subject.new_state().model, [3.0] + [20.0] * MIN_STEPS))
    assert finding.cure == "the loss explodes; try optimizer.lr=0.003, or train.clip_norm=1"


def test_the_rate_that_is_suggested_does_not_explode():
    subject = subject_of(*SMALL, "optimizer.lr=0.003")
    assert judge_steps(subject, train_steps(subject, 3)).cure is None


def test_a_decay_that_empties_the_weights_is_found():
    subject = subject_of(*SMALL, "optimizer.weight_decay=3")
    finding = judge_steps(subject, train_steps(subject, 3))
    assert "has died; try optimizer.weight_decay=5e-4" in finding.cure


@pytest.mark.parametrize("steps", [MIN_STEPS - 1, MIN_STEPS])
def test_a_loss_that_is_still_high_is_judged_after_enough_steps(subject, steps):
    finding = judge_steps(subject, Steps(subject.new_state().model, [3.0] + [20.0] * (steps - 1)))
    assert finding.text.startswith("not judged: ") == (steps < MIN_STEPS)
    assert (finding.cure is None) == (steps < MIN_STEPS)


def test_a_loss_that_is_not_finite_is_judged_at_once(subject):
    assert judge_steps(subject, Steps(subject.new_state().model, [3.0, float("nan")])).cure


def test_without_time_one_step_is_taken_and_not_judged(subject):
    assert len(train_steps(subject, 1e-9).losses) == 1


@pytest.mark.catalog
def test_a_network_that_cannot_memorize_is_found(subject):
    images, _ = subject.batch
    images[:] = 0
    assert check_memorizing(subject, 2).cure is not None


def test_a_finding_is_one_line():
    finding = Finding("steps", "loss 2 -> 9", "the loss explodes; try optimizer.lr=0.01")
    assert format_finding(finding) == (
        "wrong  steps              loss 2 -> 9: the loss explodes; try optimizer.lr=0.01"
    )


@pytest.mark.process
def test_the_command_ends_with_5_and_names_the_check(capsys):
    assert main([*SMALL, "optimizer.lr=10", "--json"]) == 5
    captured = capsys.readouterr()
    findings = json.loads(captured.out)["findings"]
    assert [finding["check"] for finding in findings if finding["cure"]] == ["steps"]
    assert captured.err == "vggexp: error: 1 check failed: steps\n"


@pytest.mark.process
def test_the_sheet_shows_nine_images(tmp_path):
    from PIL import Image

    path = tmp_path / "sheet.png"
    assert main([*SMALL, "augment=crop_flip", f"--images={path}"]) == 0
    with Image.open(path) as sheet:
        assert sheet.width > 3 * 112


@pytest.mark.parametrize(
    ("shares", "caption"), [([0.7, 0.3], "0.70 cat + 0.30 dog"), ([0.004, 0.996], "1.00 dog")]
)
def test_a_mixed_image_has_the_shares_of_its_classes(shares, caption):
    assert caption_of(torch.tensor(shares), ["cat", "dog"]) == caption


def test_out_of_memory_is_one_line(monkeypatch, capsys):
    def fail(subject):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(checks, "run_checks", fail)
    assert main(SMALL) == 6
    message = "out of memory in checking; a smaller data.batch_size needs less"
    assert capsys.readouterr().err == f"vggexp: error: {message}\n"


def test_a_run_of_several_processes_is_refused(capsys):
    assert main([*SMALL, "device.processes=2"]) == 2
    message = "device.processes=2: one process is checked; leave it out"
    assert capsys.readouterr().err == f"vggexp: error: {message}\n"
