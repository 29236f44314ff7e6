"""Command `vggexp.look`: one page with what a trained network sees in images."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vggexp import cli
from vggexp.config.run_id import network_name
from vggexp.data.image_folder import expand_image_paths, raise_together
from vggexp.errors import CheckpointError, ConfigError, DataError, ResourceError, VggexpError
from vggexp.formatting import plural
from vggexp.loggers.console import print_text
from vggexp.runs import data_root, directory
from vggexp.runs.continuation import check_states
from vggexp.runs.records import load_config, read_run
from vggexp.system.files import atomic_write, check_output_file, os_error_as_resource_error

if TYPE_CHECKING:
    from vggexp.look.look import Look, Picture
    from vggexp.runner.load import LoadedRun

DESCRIPTION = """python -m vggexp.look RUN IMAGE... [--mistakes] [--out FILE] [--json]:
one HTML page with what a trained network sees in images.

For each image: the prediction, Grad-CAM and occlusion sensitivity of the predicted and of the true
class, and the most active feature maps of each block. Then the filters of the first convolution.
IMAGE is an image, or a folder of images; the folder that holds an image names its true class.
--mistakes adds the 25 test images with the most confident wrong predictions. The page shows the
prediction of the image alone, also if the run was tested with mirror images or shifts
(train.test_flip, train.test_shift), and of a mistake what the test predicted. The page is one file
and opens without a server. A file that is missing, damaged or not an image is reported at the end,
and the page has the others. A run without mistakes is reported in the same way.

Exit code 0: done. 2: wrong usage, or no such run. 3: images or data missing or damaged. 4: the run
cannot be read. 6: memory, a permission, or the page cannot be written. 130: stopped by Ctrl-C.
"""
DEFAULT_OUT = Path("look.html")


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(lambda: _look(sys.argv[1:] if argv is None else argv), cli.NOTHING_WRITTEN)


def _look(argv: Sequence[str]) -> None:
    parser = cli.make_parser("vggexp.look", DESCRIPTION)
    parser.add_argument("run", type=Path, metavar="RUN", help="a run directory")
    parser.add_argument(
        "images", type=Path, nargs="*", metavar="IMAGE", help="an image, or a folder of images"
    )
    parser.add_argument("--mistakes", action="store_true", help="the worst mistakes of the run")
    parser.add_argument(
        "--out", type=Path, default=DEFAULT_OUT, metavar="FILE", help="default: look.html"
    )
    parser.add_argument("--data", type=Path, metavar="FOLDER", help=data_root.HELP)
    arguments = parser.parse_intermixed_args(argv)
    directory.require_run(arguments.run)
    paths = _check(arguments)
    # This imports torch, so it comes after the checks of the command.
    from vggexp.system import memory

    with memory.oom_as_resource_error(f"in looking at {arguments.run}; give fewer images"):
        _write_page(arguments, paths)


def _write_page(arguments: argparse.Namespace, paths: Sequence[Path]) -> None:
    """Writes the page and prints where it is; then raises the errors of the images left out."""
    from vggexp.look import look
    from vggexp.look.page import render_page
    from vggexp.look.saliency import first_filters

    run, tested = look.open_run(arguments.run)
    pictures = []
    errors: list[VggexpError] = []
    for path in paths:
        try:
            pictures.append(look.read_picture(path, run))
        except (DataError, ResourceError) as error:
            errors.append(error)
    if arguments.mistakes:
        try:
            pictures += look.read_mistakes(run, tested, arguments.data)
        except (DataError, ResourceError) as error:
            errors.append(error)
    if not pictures:
        raise_together(errors)
    looks = list(look.look_at(run, pictures))
    name = arguments.run.resolve().name
    page = render_page(name, _summary(run, pictures), looks, first_filters(run.model), run.classes)
    with os_error_as_resource_error(f"--out {arguments.out}", "written", "choose another file"):
        atomic_write(arguments.out, page.encode())
    text = f"{plural(len(looks), 'image')} in {arguments.out}"
    if arguments.json:
        found = [_to_dict(item, run.classes) for item in looks]
        text = json.dumps({"run": str(arguments.run), "file": str(arguments.out), "images": found})
    print_text(text)
    raise_together(errors)


def _check(arguments: argparse.Namespace) -> list[Path]:
    """Returns the paths of all images. Raises an error if there is nothing to look at."""
    if not arguments.images and not arguments.mistakes:
        raise ConfigError("IMAGE: none is given; name image files, or use --mistakes")
    if not any((arguments.run / "checkpoints").glob("*.pt")):
        raise CheckpointError(f"{arguments.run}: contains no checkpoint")
    run = read_run(arguments.run)
    if arguments.mistakes:
        data_root.locate_data(load_config(arguments.run), arguments.run, arguments.data)
        check_states([run], "searched for --mistakes")
    elif arguments.data is not None:
        raise ConfigError(f"--data {arguments.data}: belongs with --mistakes")
    check_output_file("--out", arguments.out)
    paths = expand_image_paths(arguments.images) if arguments.images else []
    cli.warn_newest_checkpoint(run)
    return paths


def _summary(run: "LoadedRun", pictures: Sequence["Picture"]) -> str:
    size = run.preprocess.size
    images = plural(len(pictures), "image")
    return f"{network_name(run.config)}, {size}x{size} pixels, {len(run.classes)} classes; {images}"


def _to_dict(look: "Look", classes: Sequence[str]) -> dict[str, Any]:
    label = look.picture.label
    return {
        "image": look.picture.name,
        "label": classes[look.predicted],
        "probability": look.probs[look.predicted].item(),
        "true_label": None if label is None else classes[label],
    }


if __name__ == "__main__":
    sys.exit(main())
