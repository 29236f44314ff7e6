"""Tab completion of values: all choices of keys that have a fixed set."""

import pytest

from vggexp.config import completion
from vggexp.config.compose import hydra_session, parse_command


@pytest.mark.catalog
@pytest.mark.parametrize(
    ("word", "completions"),
    [
        ("arch.norm=", "arch.norm=none arch.norm=batch arch.norm=lrn"),
        ("device.precision=f", "device.precision=fp32 device.precision=fp16"),
        ("device.precision=fp32,b", "device.precision=fp32,bf16"),
        ("train.test_weights=", "train.test_weights=last train.test_weights=best"),
        ("+train.test_weights=b", "+train.test_weights=best"),
        ("data.normalize=", "data.normalize=true data.normalize=false"),
        ("train.stop_if_dead=n", "train.stop_if_dead=null"),
        ("device.sync_batch_norm=n", "device.sync_batch_norm=null"),
        ("resume=e", "resume=exact"),
        ("arch.name=", "arch.name=vgg arch.name=lenet arch.name=alexnet"),
        ("data.name=SV", "data.name=SVHN"),
        ("data.cache=", "data.cache=auto data.cache=device data.cache=ram data.cache=none"),
        ("train.epochs=", "train.epochs=5"),
        ("train.test_w", "train.test_weights="),
    ],
)
def test_a_word_is_completed(word, completions):
    with hydra_session(parse_command([])) as compose_fn:
        assert completion.matches(compose_fn([]), word) == completions.split()
