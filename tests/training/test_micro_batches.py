"""The number of micro-batches after the memory has run out."""

import pytest

from tests.factories import make_model
from vggexp.errors import ResourceError
from vggexp.training.micro_batches import double_micro_batches, oom_message


def test_a_micro_batch_has_at_least_one_image():
    model = make_model()
    assert double_micro_batches(model, 4, batch_size=6) == 6
    with pytest.raises(ResourceError, match="a single image"):
        double_micro_batches(model, 6, batch_size=6)


@pytest.mark.parametrize(
    ("micro_batches", "advice"),
    [
        (1, "choose train.accumulate=2, or a smaller data.batch_size"),
        (4, "choose train.accumulate=6, or a smaller data.batch_size"),
        (6, "choose a smaller data.batch_size"),
    ],
)
def test_the_advised_number_of_micro_batches_is_allowed(micro_batches, advice):
    assert oom_message(micro_batches, batch_size=6).endswith(f"; {advice}")
