"""The moving average of the buffers. tests/training/test_loop.py has that of the weights."""

from torch import nn

from vggexp.training.ema import EMA


def test_statistics_of_batch_norm_are_averaged_and_its_count_is_copied():
    model = nn.BatchNorm1d(2)
    ema = EMA(model, 0.75)
    for mean, count in ((1.0, 4), (5.0, 7)):
        model.running_mean.fill_(mean)
        model.num_batches_tracked.fill_(count)
        ema.update(model)
    assert ema.module.running_mean.tolist() == [2.0, 2.0]
    assert ema.module.num_batches_tracked.item() == 7
