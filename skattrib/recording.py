"""Record your own training loop; the code is in `skattrib.models`."""

from skattrib.models.recording import (
    SkorchRecorder,
    TrainingRecording,
    record_training,
)

__all__ = ["SkorchRecorder", "TrainingRecording", "record_training"]
