"""Teachers: frozen networks whose features of image patches a generator learns to predict (REPA, arXiv:2410.06940).

``face`` says what is asked of one, whichever it is, ``opening`` is the one door to them; ``vision`` and ``families``
know the published transformers, ``trained`` one that was trained here, ``module`` the rest.
"""

from ifsq.pretrained.teachers.config import TeacherConfig
from ifsq.pretrained.teachers.face import ImageTeacher, SelfTeacher, Teacher
from ifsq.pretrained.teachers.module import ModuleTeacher
from ifsq.pretrained.teachers.opening import check_teacher, open_teacher, register_teacher, teacher_names

__all__ = [
    "ImageTeacher",
    "ModuleTeacher",
    "SelfTeacher",
    "Teacher",
    "TeacherConfig",
    "check_teacher",
    "open_teacher",
    "register_teacher",
    "teacher_names",
]
