"""Record your own training loop; the code is in `skattrib.models`."""

from skattrib.models.language._hugging_face_recorder import HuggingFaceRecorder
from skattrib.models.recording import (
    LightningRecorder,
    SkorchRecorder,
    TrainingRecording,
    record_training,
)

__all__ = [
    "HuggingFaceRecorder",
    "LightningRecorder",
    "SkorchRecorder",
    "TrainingRecording",
    "record_training",
]
