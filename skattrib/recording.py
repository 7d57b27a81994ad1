"""Record a training loop of one's own; it lives in `skattrib.models`."""

from skattrib.models.recording import TrainingRecording, record_training

__all__ = ["TrainingRecording", "record_training"]
