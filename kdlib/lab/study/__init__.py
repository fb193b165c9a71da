"""The ablations and the students of a teacher of two stages: what is trained, what is asked of it,
and what came of it.

``arms`` says what is trained and compared, ``trainings`` trains it, ``budget`` says how long that
takes, ``answers`` compares, ``compression`` counts costs, ``pictures`` draws; ``cross_stage`` does
the same for a teacher of two stages.
"""
