"""The detected device is the one that torch finds."""

from pathlib import Path

import pytest
import torch

from vggexp.config import device


def test_the_device_is_the_one_that_torch_finds():
    assert (device.detect_device() == "cuda") is torch.cuda.is_available()


@pytest.mark.parametrize("hidden", device.HIDDEN_DEVICES)
def test_hidden_gpus_are_not_found(hidden, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert device.detect_device() != "cuda"


def test_the_shipped_folder_holds_the_configuration():
    assert Path(device.conf_dir(), "config.yaml").is_file()
