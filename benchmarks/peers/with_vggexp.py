"""A run of vggexp up to its test: data, loop, log, TensorBoard and checkpoints as in any run."""

import sys
from functools import partial
from pathlib import Path
from tempfile import mkdtemp

from benchmarks.peers.common import SYSTEM, Report, count, work


def main() -> None:
    asked, report = work(), Report()
    sys.stdout = sys.stderr  # the run's own lines
    from vggexp.config import compose

    config = compose.load_run(compose.parse([
        "experiment=gluon_vgg11", f"data.limit={asked.images}", f"data.resize={asked.size}",
        f"data.batch_size={asked.batch_size}", f"train.epochs={asked.epochs}", "train.test_each_epoch=false",
        "train.rest_minutes=0", f"device={asked.device}", *([] if asked.best else ["device.precision=fp32"]),
        *([] if SYSTEM.is_dir() else ["data=synthetic", f"data.images={asked.images}", "data.size=28"]),
    ]))  # fmt: skip
    import vggexp.train
    from vggexp import build, keep
    from vggexp.clock import Clock
    from vggexp.job import scores_of
    from vggexp.run import built
    from vggexp.signals import Stop
    from vggexp.sinks.console import Console
    from vggexp.watch import Watch

    update = vggexp.train.update

    def counted(*arguments):
        done = update(*arguments)
        sys.stdout = sys.__stdout__
        report.step()
        sys.stdout = sys.stderr
        return done

    vggexp.train.update = counted
    folder, console = Path(mkdtemp()), Console(None)
    hardware, data, state = built(config, None, console)
    watch = Watch(folder, console, config.train.epochs, {}, [])
    keeper = keep.Checkpoints(folder / "checkpoints", "last", config.train.checkpoint_minutes, {})
    measure = partial(scores_of, config=config, hardware=hardware, data=data, console=console)
    plan, clock = build.plan(config, hardware), Clock(hardware.device)
    vggexp.train.train(state, data.train, plan, clock, measure, watch, keeper, Stop())
    for row in state.history:  # with its waits and its log; a peer's checkpoint is not in its epoch either
        report.epoch_done(asked.images / row["images_per_second"])
    sys.stdout = sys.__stdout__
    report.done(count(state.net), asked.images)


if __name__ == "__main__":
    main()
