"""Record your own training loop; the code is in `skattrib.models`."""

from skattrib.models.recording import TrainingRecording, record_training

__all__ = ["TrainingRecording", "record_training"]
