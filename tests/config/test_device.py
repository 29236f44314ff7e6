"""The detected device is the one that torch finds."""

from pathlib import Path

import pytest
import torch

from vggexp.config import device
from vggexp.errors import ConfigError


@pytest.fixture
def profile(monkeypatch):
    """Returns a function that reads the profile, with a folder of the user or without one."""

    def read(folder=""):
        monkeypatch.setenv(device.USER_FOLDERS, str(folder))
        device.device_profile.cache_clear()
        return device.device_profile()

    yield read
    device.device_profile.cache_clear()


def test_the_device_is_the_one_that_torch_finds():
    assert (device.detect_device() == "cuda") is torch.cuda.is_available()


@pytest.mark.parametrize("hidden", device.HIDDEN_DEVICES)
def test_hidden_gpus_are_not_found(hidden, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert device.detect_device() != "cuda"


def test_the_shipped_folder_holds_the_configuration():
    assert Path(device.conf_dir(), "config.yaml").is_file()


def test_the_profile_is_the_file_of_the_device(profile):
    assert profile()["name"] == device.detect_device()


def test_a_users_own_file_comes_first(profile, tmp_path):
    (tmp_path / "device").mkdir()
    (tmp_path / "device" / f"{device.detect_device()}.yaml").write_text("threads: 3")
    assert profile(tmp_path) == {"threads": 3}


def test_a_users_folder_without_the_file_is_passed_over(profile, tmp_path):
    assert profile(tmp_path) == profile()


def test_a_file_beyond_the_limits_is_refused(profile, tmp_path):
    (tmp_path / "device").mkdir()
    (tmp_path / "device" / f"{device.detect_device()}.yaml").write_text("[" * 60_000)
    with pytest.raises(ConfigError):
        profile(tmp_path)
