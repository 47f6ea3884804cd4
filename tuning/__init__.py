"""Finding out what learns sooner: a probe of minutes, trials of whole runs, a GPU run in one call.

Not part of the program: nothing in launch.py, actors, learner or common imports it.
"""
