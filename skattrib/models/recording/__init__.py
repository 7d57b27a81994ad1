"""Record your own training loop, so that its run can be attributed."""

from skattrib.models.recording._recording import TrainingRecording, record_training

__all__ = ["TrainingRecording", "record_training"]
