"""Knowledge distillation: a student learns from a frozen teacher beside the labels.

    teacher -> TeacherAnswer (maps, targets, boxes, features)
    label       teacher boxes + ground truth -> the labels the student is assigned
    align, pivotal, instances, logit      maps of both -> kd_heatmap, kd_rank, kd_box
    adapter, roi_grid, local, feature     features of both -> kd_feature, kd_relation
    objective   Plain (student alone), Distillation (all of it, scheduled) -> LossTerms
    watch       values of the terms -> an error where one does nothing, the startup report
    own         FILE.py:NAME or MODULE:NAME -> terms of one's own, and a digest of their source
    initialise  the teacher's matching tensors -> the student, before training

A term is a pure function of the student's and the teacher's :class:`~kdlib.types.HeadOutput`;
logits and probabilities are never in the same variable, so no term depends on what ran before it.

A term of one's own takes one file and no change here: a function of a
:class:`~kdlib.kd.term.StepContext` that returns one number, with a
:class:`~kdlib.kd.term.Term` around it that gives it a name and a weight::

    def heading(step: StepContext) -> Tensor:
        ours, theirs = step.prediction.heads[0], step.answer.heads[0]
        wanted = align_maps(theirs.rot, ours.rot.shape[-2:])
        return (1 - torch.cosine_similarity(ours.rot, wanted, dim=1)).mean()

    own = Term("kd_heading", weight=0.5, value=heading)
    objective = Distillation(student, teacher, config, extra=(own,))

It is weighed by the schedule, listed in the startup report and watched for zeros like any other.
``needs`` asks the teacher for targets, boxes, features or sites; a value that is a
``torch.nn.Module`` is trained with the student and left out of its weights.
"""
