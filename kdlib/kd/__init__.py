"""Knowledge distillation: a teacher, a student and a batch enter, loss terms of the student leave.

    teacher -> TeacherAnswer (maps, targets, boxes)
    label       teacher boxes + ground truth -> the labels the student is assigned
    align, pivotal, logit       maps of both -> kd_heatmap, kd_box
    objective   Plain (student alone) and Distillation (all of it) -> LossTerms
    initialise  the teacher's matching tensors -> the student, before training

A term is a pure function of the student's and the teacher's :class:`~kdlib.types.HeadOutput`; logits and probabilities are never
in the same variable, so no term depends on what ran before it.
"""
