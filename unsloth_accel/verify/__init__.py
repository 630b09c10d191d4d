"""verify: train the same rows on one process and on several, and hold the runs against each other.

`settings` makes short plans of a run, `runs` trains them, `record` notes inside each process what a run's own files
don't tell, `compare` judges, `report` tells.
"""
