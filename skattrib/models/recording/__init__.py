"""Record your own training loop, so that its run can be attributed."""

from skattrib.models.recording._lightning_recorder import LightningRecorder
from skattrib.models.recording._recording import TrainingRecording, record_training
from skattrib.models.recording._skorch_recorder import SkorchRecorder

__all__ = [
    "LightningRecorder",
    "SkorchRecorder",
    "TrainingRecording",
    "record_training",
]
