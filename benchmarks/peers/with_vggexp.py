"""A run of vggexp up to its test: data, loop, log, TensorBoard and checkpoints as in any run."""

import sys
from functools import partial
from pathlib import Path
from tempfile import mkdtemp

from benchmarks.peers.common import SYSTEM, Report, count, work


def main() -> None:
    asked = work()
    report = Report()
    sys.stdout = sys.stderr  # the run's own lines
    from vggexp.config import compose
    from vggexp.sweep import expand

    config = expand.compose_run(
        compose.parse_command(
            [
                "experiment=gluon_vgg11",
                f"data.limit={asked.images}",
                f"data.resize={asked.size}",
                f"data.batch_size={asked.batch_size}",
                f"train.epochs={asked.epochs}",
                "train.test_each_epoch=false",
                "train.rest_minutes=0",
                f"device={asked.device}",
                *([] if asked.best else ["device.precision=fp32"]),
                *(
                    []
                    if SYSTEM.is_dir()
                    else ["data=synthetic", f"data.images={asked.images}", "data.size=28"]
                ),
            ]
        )
    )
    import vggexp.training.loop
    from vggexp.loggers.console import Console
    from vggexp.loggers.run_logger import RunLogger
    from vggexp.runner import build
    from vggexp.runner.job import evaluate_epoch
    from vggexp.runner.resume import build_run
    from vggexp.system.signals import StopFlag
    from vggexp.training import checkpoint_manager
    from vggexp.training.timer import PhaseTimer

    update = vggexp.train.update

    def counted(*arguments):
        done = update(*arguments)
        sys.stdout = sys.__stdout__
        report.step()
        sys.stdout = sys.stderr
        return done

    vggexp.train.update = counted
    folder = Path(mkdtemp())
    console = Console(None)
    hardware, data, state = build_run(config, None, console)
    watch = RunLogger(folder, console, config.train.epochs, {}, [])
    keeper = checkpoint_manager.CheckpointManager(
        folder / "checkpoints", "last", config.train.checkpoint_minutes, {}
    )
    measure = partial(evaluate_epoch, config=config, hardware=hardware, data=data, console=console)
    plan = build.train_settings(config, hardware)
    clock = PhaseTimer(hardware.device)
    vggexp.train.train(state, data.train, plan, clock, measure, watch, keeper, StopFlag())
    for row in (
        state.history
    ):  # with its waits and its log; a peer's checkpoint is not in its epoch either
        report.epoch_done(asked.images / row["images_per_second"])
    sys.stdout = sys.__stdout__
    report.done(count(state.model), asked.images)


if __name__ == "__main__":
    main()
