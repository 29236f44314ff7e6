"""A run of vggexp up to its test: data, loop, log, TensorBoard and checkpoints as in any run."""

import contextlib
import sys
from pathlib import Path
from tempfile import mkdtemp

from benchmarks.peers.common import SYSTEM, Report, parse_arguments


def main() -> None:
    arguments = parse_arguments()
    report = Report()
    overrides = [
        f"experiment={arguments.network.experiment}",
        "data.val_fraction=0",
        f"data.limit={arguments.images}",
        f"data.resize={arguments.size}",
        f"data.batch_size={arguments.batch_size}",
        f"train.epochs={arguments.epochs}",
        "augment.flip_only_fraction=null",  # the peers augment in every epoch
        "train.test_each_epoch=false",
        "train.rest_minutes=0",
        f"device={arguments.device}",
    ]
    if not arguments.best:
        overrides.append("device.precision=fp32")
    if not SYSTEM.is_dir():
        overrides += ["data=synthetic", f"data.images={arguments.images}", "data.size=28"]
    with contextlib.redirect_stdout(sys.stderr):  # stdout is for the report
        train_run(overrides, arguments.images, report)


def train_run(overrides: list[str], images: int, report: Report) -> None:
    from vggexp.config import compose
    from vggexp.sweep import expand

    config = expand.compose_run(compose.parse_command(overrides))
    # Imports torch, so these imports follow the composition as in a run.
    from vggexp.loggers.console import Console
    from vggexp.loggers.hparams import hparams_table
    from vggexp.loggers.run_logger import RunLogger
    from vggexp.runner import build
    from vggexp.runner.job import evaluate_epoch
    from vggexp.runner.resume import build_run
    from vggexp.system.signals import StopFlag
    from vggexp.training import loop
    from vggexp.training.checkpoint_manager import CheckpointManager
    from vggexp.training.timer import PhaseTimer

    update = loop.optimizer_step

    def update_and_count(*step_arguments):
        result = update(*step_arguments)
        with contextlib.redirect_stdout(sys.__stdout__):
            report.count_step()
        return result

    loop.optimizer_step = update_and_count
    folder = Path(mkdtemp())
    console = Console(None)
    device_setup, data, state = build_run(config, None, console)
    minutes = config.train.checkpoint_minutes
    run_loop = loop.TrainLoop(
        build.train_settings(config, device_setup),
        PhaseTimer(device_setup.device),
        RunLogger(folder, console, config.train.epochs, hparams_table(config), []),
        CheckpointManager(folder / "checkpoints", "last", minutes, {}),
        StopFlag(),
    )
    loop.train(
        state,
        data.train,
        run_loop,
        lambda model: evaluate_epoch(model, config, device_setup, data, console),
    )
    # The rate of an epoch includes its waits and its log. It leaves out the checkpoint, which is
    # not in a peer's epoch either.
    for row in state.history:
        report.epoch_seconds.append(images / row["images_per_second"])
    with contextlib.redirect_stdout(sys.__stdout__):
        report.finish(state.model, images)


if __name__ == "__main__":
    main()
