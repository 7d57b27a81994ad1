"""Record your own training loop; the code is in `skattrib.models`."""

from skattrib.models.recording import (
    LightningRecorder,
    SkorchRecorder,
    TrainingRecording,
    record_training,
)

__all__ = [
    "LightningRecorder",
    "SkorchRecorder",
    "TrainingRecording",
    "record_training",
]
