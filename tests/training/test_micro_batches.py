"""The number of micro-batches after the memory has run out."""

import pytest

from tests.factories import make_model
from vggexp.errors import ResourceError
from vggexp.training.micro_batches import double_micro_batches


def test_a_micro_batch_has_at_least_one_image():
    model = make_model()
    assert double_micro_batches(model, 4, batch_size=6) == 6
    with pytest.raises(ResourceError, match="a single image"):
        double_micro_batches(model, 6, batch_size=6)
