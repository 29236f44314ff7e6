"""The sanity checks: each returns in one line what it found, and a cure if something is wrong."""

import io
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from operator import attrgetter
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor, nn

from vggexp.bench.measure import cycle
from vggexp.check.labels import SIDE, Sample, balanced_size, probe_labels, take_sample
from vggexp.config.derived import disk_bytes, layers, memory_bytes
from vggexp.config.hints import hints, smaller_steps, suggested_overrides
from vggexp.config.schema import Augment, Config, ImageFiles
from vggexp.formatting import advise, duration, format_bytes, format_metric, plural
from vggexp.loggers.images import captioned_grid
from vggexp.models.transfer import train_mode
from vggexp.runner import build, datasets
from vggexp.runner.datasets import DataLoaders
from vggexp.runner.hardware import DeviceSetup, setup_device
from vggexp.runner.init_weights import load_init_weights
from vggexp.system.files import atomic_write, os_error_as_resource_error
from vggexp.training.dead_layers import LayerStats, first_dead, layer_stats
from vggexp.training.loop import TrainSettings, TrainState, step_settings
from vggexp.training.metrics import evaluate
from vggexp.training.optimizers import build_optimizer, set_lr
from vggexp.training.step import Batch, NonFiniteGuard, forward_backward, optimizer_step

PROBE_IMAGES = 32  # for the statistics of the layers, and for the steps
MEMORIZED_IMAGES = 16
SAMPLE_IMAGES = 2000  # for the classifier of tiny images
DECODED_IMAGES = 600  # the same if every image has to be decoded
MIN_IMAGES_PER_CLASS = 10  # with fewer, the classifier of tiny images cannot judge
TRAINED_STEPS = 150  # as train.probe_steps
TRAINING_SECONDS = 7.5
MEAN_STEPS = 5  # over which a loss is averaged
MIN_STEPS = 20  # with fewer, a loss that is still high proves nothing
MEMORIZING_LR = 5e-4  # of Adam
# Relative to the loss of guessing.
EXPLODED = 4.0
MEMORIZED = 0.1
LEARNING = 0.8  # relative to the first loss
SHOWN_SHARE = 0.005  # of a class in a mixed image; less is printed as 0.00
NO_AUGMENT = Augment(
    flip=0, crop=0, scale=None, color=0, erase=0, mixup=None, cutmix=None, flip_only_fraction=None
)


@dataclass(frozen=True)
class Finding:
    """What a check found. `cure`: what to do; None if all is well."""

    check: str
    text: str
    cure: str | None = None


@dataclass
class Steps:
    """A model after a few steps of training."""

    model: nn.Module
    losses: list[float] = field(default_factory=list)  # of each step, before its update
    images_per_second: float = 0.0  # of the last step


@dataclass(frozen=True)
class Subject:
    """What is checked: a configuration without augmentation, and its data."""

    config: Config
    device_setup: DeviceSetup
    data: DataLoaders
    batch: Batch  # of the training images

    @property
    def classes(self) -> int:
        return len(self.data.classes)

    @property
    def guessing_loss(self) -> float:
        return math.log(self.classes)

    def first(self, count: int) -> Batch:
        images, labels = self.batch
        return images[:count], labels[:count]

    def new_state(self) -> TrainState:
        """Returns the state of the run at its start."""
        steps = self.data.train.batches_per_epoch
        state = build.build_state(self.config, self.device_setup, steps)
        load_init_weights(state.model, self.config)
        return state

    def train_settings(self) -> TrainSettings:
        """Returns the settings of the run, without label smoothing."""
        settings = build.train_settings(self.config, self.device_setup)
        return replace(settings, label_smoothing=0.0)


def make_subject(config: Config) -> Subject:
    """Reads the data, and takes augmentation away.

    Raises:
        DataError: the data is missing or corrupt.
    """
    device_setup = setup_device(config)
    plain = replace(config, augment=NO_AUGMENT)
    data = datasets.build_checked_loaders(plain, device_setup.device)
    return Subject(plain, device_setup, data, next(iter(data.train.train(0))))


def run_checks(subject: Subject, seconds: float = TRAINING_SECONDS) -> Iterator[Finding]:
    """Yields what each check found. Writes no file.

    Args:
        seconds: time for the steps of the configured optimizer, and again for memorizing.
    """
    yield check_images(subject)
    yield from check_labels(subject)
    yield from check_layers(subject)
    steps = train_steps(subject, seconds)
    yield judge_steps(subject, steps)
    yield check_memorizing(subject, seconds)
    yield from check_evaluation(subject)
    yield forecast(subject, steps)


def check_images(subject: Subject) -> Finding:
    """Compares the images of a batch with each other."""
    images, _ = subject.batch
    shape = "x".join(map(str, images.shape[1:]))
    values = f"values {images.min():.2f}..{images.max():.2f}"
    text = f"{subject.data.train.count:,} of {shape}, {values}"
    cure = None
    if not torch.isfinite(images).all():
        cure = "not all values are finite; check the files"
    elif len(images) > 1 and bool((images == images[0]).all()):
        cure = f"the first {len(images)} are all the same; check the files"
    return Finding("images", text, cure)


def check_labels(subject: Subject) -> Iterator[Finding]:
    """Checks that there are several classes, and that labels and images belong together."""
    data = subject.data
    count = DECODED_IMAGES if isinstance(subject.config.data, ImageFiles) else SAMPLE_IMAGES
    labels = data.train.labels.cpu()  # of all images: a sample may lack a rare class
    counts = labels.bincount(minlength=subject.classes)
    images = plural(len(labels), "image")
    text = f"{int((counts > 0).sum())} of {subject.classes} classes in {images}"
    if len(labels) > MIN_IMAGES_PER_CLASS * subject.classes and counts.min() == 0:
        missing = data.classes[int(counts.argmin())]
        yield Finding("classes", text, f"{missing} has none; check the labels")
        return
    yield Finding("classes", text)
    train = take_sample(data.train.train(0), count)
    for split, loader in (("validation", data.val), ("test", data.test)):
        if loader is not None:
            held_out = take_sample(loader.train(0), count // 4)
            yield judge_labels(train, held_out, subject.classes, split)


def judge_labels(train: Sample, held_out: Sample, classes: int, split: str) -> Finding:
    """Tries to predict the labels of `held_out` from tiny images.

    Labels that belong to other images cannot be predicted. Too few images prove nothing.
    """
    name = f"{split} labels"
    count = len(held_out.labels)
    judged_size = min(balanced_size(train.labels), 4 * balanced_size(held_out.labels))
    if judged_size < MIN_IMAGES_PER_CLASS * classes:
        return Finding(name, f"not judged: {count} images of {classes} classes")
    probe = probe_labels(train, held_out, classes)
    text = (
        f"a linear classifier of {SIDE}x{SIDE} pixels has mean recall {probe.recall:.2f} "
        f"in {count} images, chance {probe.chance:.2f}"
    )
    cure = None
    if probe.is_guessing:
        cure = "do labels and images belong together? look at them with --images FILE"
    return Finding(name, text, cure)


def check_layers(subject: Subject) -> Iterator[Finding]:
    """Sends a batch through the network at its initial weights, forward and back."""
    config = subject.config
    model = subject.new_state().model
    stats, loss = layer_stats(model, subject.first(PROBE_IMAGES), layers(config))
    advice = advise(suggested_overrides(config))
    text = f"{format_metric(loss)}, ln {subject.classes} = {subject.guessing_loss:.4f}"
    is_far = not loss < EXPLODED * subject.guessing_loss
    yield Finding("initial loss", text, advice if is_far else None)
    dead = first_dead(stats)
    text = f"{_extremes(stats, 'signal')} of the differences between images"
    cure = None if dead is None else f"{dead.layer} lets nothing through; {advice}"
    yield Finding("signal", text, cure)
    still = [layer for layer in stats if not 0 < layer.gradient < math.inf]
    text = f"{_extremes(stats, 'gradient')} of the weights"
    cure = f"{still[0].layer} gets none; {advice}" if still else None
    yield Finding("gradient", text, cure)
    text = f"{stats[-1].signal:.2g} of the differences between images"
    yield Finding("logits", text, advice if dead is not None else None)


def _extremes(stats: Sequence[LayerStats], name: str) -> str:
    """Returns the smallest and the largest value with their layers."""
    ordered = sorted(stats, key=attrgetter(name))
    smallest, largest = (
        f"{getattr(layer, name):.2g} ({layer.layer})" for layer in (ordered[0], ordered[-1])
    )
    return f"{smallest} to {largest}"


def train_steps(subject: Subject, seconds: float) -> Steps:
    """Trains for a few steps with the configured optimizer and learning rate.

    A schedule that begins below optimizer.lr rises to it during the first half of the steps. The
    batches are as large as the time allows for TRAINED_STEPS steps.
    """
    config = subject.config
    settings = subject.train_settings()
    state = subject.new_state()
    starts_low = config.scheduler.name == "onecycle" or config.scheduler.warmup_epochs > 0
    steps = Steps(state.model)
    size = PROBE_IMAGES
    started = time.perf_counter()
    for images, labels in islice(cycle(subject.data.train), TRAINED_STEPS):
        step_started = time.perf_counter()
        share = max(len(steps.losses) / TRAINED_STEPS, (step_started - started) / seconds)
        if share >= 1 and steps.losses:  # one step is taken even if reading the images was slow
            break
        lr = config.optimizer.lr * (min(1, 2 * share + 0.02) if starts_low else 1)
        loss = take_step(settings, state, (images[:size], labels[:size]), lr)
        steps.losses.append(loss)
        if not math.isfinite(loss):
            break
        steps.images_per_second = len(images[:size]) / (time.perf_counter() - step_started)
        fitting = steps.images_per_second * seconds / TRAINED_STEPS
        size = max(PROBE_IMAGES, min(len(images), int(fitting)))
    return steps


def take_step(settings: TrainSettings, state: TrainState, batch: Batch, lr: float) -> float:
    """Updates the model on one batch and returns the mean loss before the update."""
    images, _ = batch
    settings = replace(settings, batch_size=len(images))
    guard = NonFiniteGuard(settings.device)
    train_mode(state.model)
    set_lr(state.optimizer, lr)
    step_cfg = step_settings(state, settings, guard)
    loss, _ = forward_backward(state.model, batch, step_cfg)
    optimizer_step(state.model, state.optimizer, loss, 0, step_cfg)
    return loss.item() / len(images)


def judge_steps(subject: Subject, steps: Steps) -> Finding:
    """Looks at the loss and at the layers after the steps."""
    config = subject.config
    losses = steps.losses
    first = format_metric(mean(losses[:MEAN_STEPS]))
    last = format_metric(mean(losses[-MEAN_STEPS:]))
    text = (
        f"loss {first} -> {last} "
        f"in {plural(len(losses), 'step')}, {config.optimizer.name} lr {config.optimizer.lr:g}"
    )
    is_high = not losses[-1] < max(losses[0], EXPLODED * subject.guessing_loss)
    if is_high and (len(losses) >= MIN_STEPS or not math.isfinite(losses[-1])):
        return Finding("steps", text, f"the loss explodes; {advise(smaller_steps(config))}")
    if len(losses) < MIN_STEPS:
        return Finding("steps", f"not judged: {text}")
    dead = first_dead(layer_stats(steps.model, subject.first(PROBE_IMAGES), layers(config))[0])
    if dead is not None:
        advice = advise(suggested_overrides(config))
        return Finding("steps", text, f"{dead.layer} has died; {advice}")
    return Finding("steps", text)


def check_memorizing(subject: Subject, seconds: float) -> Finding:
    """Trains on a few images without dropout, by Adam, until all are predicted."""
    settings = subject.train_settings()
    state = subject.new_state()
    for module in state.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0
    state.optimizer = build_optimizer("Adam", state.model, MEMORIZING_LR, 0, {})
    batch = subject.first(MEMORIZED_IMAGES)
    losses: list[float] = []
    started = time.perf_counter()
    while time.perf_counter() - started < seconds:
        losses.append(take_step(settings, state, batch, MEMORIZING_LR))
        if not losses[-1] > MEMORIZED * subject.guessing_loss:
            break
    images = plural(len(batch[1]), "image")
    count = plural(len(losses), "step")
    if losses[-1] <= MEMORIZED * subject.guessing_loss:
        return Finding("memorizing", f"{images} in {count} of Adam")
    first = format_metric(losses[0])
    last = format_metric(losses[-1])
    text = f"loss {first} -> {last} on {images} in {count} of Adam"
    if losses[-1] < LEARNING * losses[0]:
        return Finding("memorizing", text)
    if len(losses) < MIN_STEPS:
        return Finding("memorizing", f"not judged: {text}")
    return Finding("memorizing", text, advise(suggested_overrides(subject.config)))


def check_evaluation(subject: Subject) -> Iterator[Finding]:
    """Evaluates one batch of the validation and of the test images."""
    model = subject.new_state().model
    device = subject.device_setup.device
    autocast = subject.device_setup.autocast
    for split, loader in (("validation", subject.data.val), ("test", subject.data.test)):
        if loader is None:
            continue
        batches = list(islice(loader.evaluate(), 1))
        loss = evaluate(model, batches, device, autocast, split)[f"{split}/loss"]
        text = f"{plural(loader.count, 'image')}, loss of the first batch {format_metric(loss)}"
        cure = None if math.isfinite(loss) else "the loss is not finite; try device.precision=fp32"
        yield Finding(split, text, cure)


def forecast(subject: Subject, steps: Steps) -> Finding:
    """Returns the time at the speed of the steps, and what plan says of memory and disk."""
    config = subject.config
    epochs = plural(config.train.epochs, "epoch")
    images = subject.data.train.count * config.train.epochs
    expected = "unknown time"  # the first loss is not finite
    if steps.images_per_second:
        expected = f"about {duration(images / steps.images_per_second)}"
    memory = format_bytes(memory_bytes(config)["total"] or 0, "B")
    disk = format_bytes(disk_bytes(config)["run"], "B")
    text = f"{expected} for {epochs}, {memory} of memory, up to {disk} of disk"
    for hint in hints(config):
        if hint.key == "memory":
            return Finding("forecast", text, hint.text)
    return Finding("forecast", text)


def write_sheet(config: Config, path: Path, count: int = 9) -> None:
    """Writes the first training images, augmented as configured, with their labels, as PNG.

    Raises:
        ResourceError: the file cannot be written.
    """
    from PIL import Image

    device_setup = setup_device(config)
    data = datasets.build_checked_loaders(config, device_setup.device)
    images, labels = next(iter(data.train.train(0)))
    captions = [caption_of(label, data.classes) for label in labels[:count]]
    sheet = captioned_grid(images[:count].float().cpu().numpy(), captions)
    content = io.BytesIO()
    Image.fromarray(sheet).save(content, "PNG")
    with os_error_as_resource_error(f"--images={path}", "written"):
        atomic_write(path, content.getvalue())


def caption_of(label: Tensor, classes: Sequence[str]) -> str:
    """Returns the class of an image, or the shares of the two classes of a mixed one."""
    if label.ndim == 0:
        return classes[int(label)]
    shares, indices = label.topk(2)
    parts = zip(shares.tolist(), indices.tolist(), strict=True)
    return " + ".join(
        f"{share:.2f} {classes[index]}" for share, index in parts if share >= SHOWN_SHARE
    )
