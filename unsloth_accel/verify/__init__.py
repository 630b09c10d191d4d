"""verify: train the same rows on one process and on several, and hold the runs against each other.

`settings` makes short plans of a run, `runs` trains them, `record` notes inside each process what a run's own files
don't tell, `compare` judges, `report` tells.
"""

RECORD = "UNSLOTH_ACCEL_RECORD"
"""Environment variable of the launched processes: the directory that `record.Record` writes into."""
START = "start.safetensors"
"""File there: the adapter before training, under the names that PEFT saves it with."""
