"""An evaluation in TensorBoard: a run of its own below the run that was evaluated, whose events stay as they are."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.plugins.text.metadata import create_summary_metadata
from tensorboard.summary.writer.record_writer import RecordWriter

from vggexp.sinks.tensorboard import image, replacing, start_marks


def write_evaluation(
    folder: Path, scores: Mapping[str, float], epoch: int, text: str, confusion: NDArray[np.uint8]
) -> None:
    """scores: by tags that the run has too, at its epoch. text: Markdown. The folder's earlier events are replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    scalars = [Summary.Value(tag=tag, simple_value=number) for tag, number in scores.items()]
    values = [*scalars, _text("evaluation", text), image("test/confusion", confusion)]
    now = time.time()
    with replacing(folder) as file, file:
        for event in [*start_marks(now), Event(summary=Summary(value=values), step=epoch, wall_time=now)]:
            RecordWriter(file).write(event.SerializeToString())


def _text(tag: str, text: str) -> Any:
    shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)])
    tensor = TensorProto(dtype=DT_STRING, string_val=[text.encode()], tensor_shape=shape)
    return Summary.Value(tag=tag, tensor=tensor, metadata=create_summary_metadata(tag, ""))
