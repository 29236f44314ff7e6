"""What follows from a configuration. tests/models/test_costs.py has the bytes by hand."""

from vggexp.config.compose import parse_command
from vggexp.config.derived import memory_bytes
from vggexp.sweep.expand import compose_run


def memory(*overrides):
    return memory_bytes(compose_run(parse_command(["device=cpu", *overrides])))


def test_each_rank_holds_its_part_of_a_micro_batch():
    expected = memory("data.batch_size=128", "train.accumulate=4")
    assert memory("data.batch_size=128", "device.processes=4") == expected
    both = ["device.processes=2", "train.accumulate=2"]
    assert memory("data.batch_size=128", *both) == expected
    assert memory("data.batch_size=125", *both) == expected  # the largest part has 32 images too
    assert memory("data.batch_size=124", *both) != expected
