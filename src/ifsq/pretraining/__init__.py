"""Training a teacher on a run's own images, without labels: ``views`` of an image, what is asked of them, the task."""

from ifsq.pretrained.teachers.trained import KIND
from ifsq.pretraining.config import TeacherExperiment
from ifsq.pretraining.train import Student, TeacherTask

__all__ = ["KIND", "Student", "TeacherExperiment", "TeacherTask"]
