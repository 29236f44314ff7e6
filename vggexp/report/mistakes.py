"""Renders the section about the best run: confusion matrix and worst mistakes."""

import base64
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vggexp.data.catalog import DATASETS, folder_classes
from vggexp.errors import DataError, VggexpError
from vggexp.formatting import escape_html
from vggexp.report.heatmaps import confusion_grid
from vggexp.report.sections import html_table
from vggexp.report.table import Table
from vggexp.runs import predictions
from vggexp.runs.confusion import count_confusions
from vggexp.runs.data_root import resolve_root
from vggexp.runs.predictions import Predictions, worst_mistakes

MAX_MATRIX_CLASSES = 24  # of a confusion matrix
MAX_PAIRS = 24  # of classes, in the table of mistakes


def best_run_section(table: Table) -> str:
    """Returns what the best run misclassifies as HTML; empty if no run has finished."""
    run = table.runs[0]
    if run.state != "finished":
        return ""
    try:
        stored = predictions.read(run.folder, run.config)
    except VggexpError as error:
        note = f"its predictions are left out: {error}"
        content = ""
    else:
        names = class_names(run.config, stored.probs.shape[1], run.environment)
        wrong = int((~stored.correct).sum())
        note = f"{wrong:,} of {len(stored.labels):,} test images wrong."
        content = _confusions(stored, names) + _mistakes(stored, names, run.folder)
    name = escape_html(table.rows[0]["run"])
    text = f"<p><code>{name}</code>: {escape_html(note)}</p>"
    return f"<section><h3>The best run</h3>{text}{content}</section>"


def _confusions(stored: Predictions, names: Sequence[str]) -> str:
    """Returns the confusion matrix, or a table of the most frequent mistakes of many classes."""
    confusions = count_confusions(stored.labels, stored.predicted, len(names))
    if len(names) <= MAX_MATRIX_CLASSES:
        return f"<h4>Confusion</h4>{confusion_grid(confusions, names)}"
    rows = [
        {
            "true class": names[pair.label],
            "predicted": names[pair.predicted],
            "images": f"{pair.images:,}",
        }
        for pair in confusions.most_confused(MAX_PAIRS)
    ]
    if not rows:
        return ""
    note = f"The most frequent mistakes of {len(names):,} classes."
    return f"<h4>Confusion</h4><p>{note}</p>{html_table(rows)}"


def _mistakes(stored: Predictions, names: Sequence[str], folder: Path) -> str:
    from vggexp.loggers.event_files import read_image_summary  # imports protobuf

    rows = [
        {
            "test image": str(mistake.index),
            "true class": names[mistake.label],
            "predicted": names[mistake.predicted],
            "probability": f"{mistake.prob:.4f}",
            "true class's probability": f"{mistake.label_prob:.4f}",
        }
        for mistake in worst_mistakes(stored)
    ]
    if not rows:
        return ""
    image = ""
    png = read_image_summary(folder, "test/worst_mistakes")
    if png is not None:
        url = f"data:image/png;base64,{base64.b64encode(png).decode()}"
        image = f'<img src="{url}" alt="the worst mistakes">'
    note = "The wrong predictions of the highest probability. Images are counted from 0."
    if any((folder / "checkpoints").glob("*.pt")):
        command = f"python -m vggexp.look {shlex.quote(str(folder))} --mistakes"
        note += f" To see where the network looks: <code>{escape_html(command)}</code>"
    pair = f'<div class="pair">{html_table(rows)}{image}</div>'
    return f"<h4>Worst mistakes</h4><p>{note}</p>{pair}"


def class_names(
    config: Mapping[str, Any], count: int, environment: Mapping[str, Any] = {}
) -> tuple[str, ...]:
    """Returns the names of the classes of a run's data.

    Args:
        config: The run's configuration with flat keys.
        count: Number of classes. If the number of known names is another one, the classes are
            named by their indices.
        environment: env.json of the run, which has the names, unless an earlier version wrote it,
            and the folder that a relative data.root is of.
    """
    recorded = environment.get("classes")
    if isinstance(recorded, list) and len(recorded) == count:
        return tuple(map(str, recorded))
    names: tuple[str, ...] = ()
    dataset = config.get("data.name")
    root = config.get("data.root")
    if isinstance(dataset, str) and dataset in DATASETS:
        names = DATASETS[dataset].classes
    elif dataset == "image_folder" and isinstance(root, str):
        try:
            names = folder_classes(resolve_root(root, environment))
        except (DataError, ValueError):  # the folder has moved or is on another machine
            names = ()
    if len(names) == count:
        return names
    return tuple(str(index) for index in range(count))
