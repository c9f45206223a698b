"""The ways to weigh the losses of several tasks, by name: what configurations name and the training loop does."""

SIMPLEX_WEIGHTS = ("loss_share", "average")  # weights on the simplex, computed here
TASK_WEIGHTS = SIMPLEX_WEIGHTS
