"""The ablations: a profile with study settings in; trainings, paired comparisons, sentences and ``reports/study.md`` out.

``arms`` says what is trained and compared, ``trainings`` trains it, ``budget`` says how long that takes, ``answers`` compares,
``words`` turns an interval into a sentence, ``pictures`` draws, ``page`` writes the report.
"""
