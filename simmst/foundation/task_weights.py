"""The ways to weigh the losses of several tasks, by name: what configurations name and the training loop does."""

SIMPLEX_WEIGHTS = ("loss_share", "average")  # of the losses alone
SCALARIZERS = ("uncertainty", "dwa", "imtl-l", "famo", "stch")  # what else is made of the losses, by torchjd
GRADIENT_WEIGHTS = ("upgrad", "mgda", "pcgrad")  # of the gradients of each task's loss, by torchjd
TASK_WEIGHTS = (*SIMPLEX_WEIGHTS, *SCALARIZERS, *GRADIENT_WEIGHTS)
