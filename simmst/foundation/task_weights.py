"""The names of the ways to weigh the losses of several tasks, for configurations and the training loop."""

SIMPLEX_WEIGHTS = ("loss_share", "average")  # from the losses alone
SCALARIZERS = ("uncertainty", "dwa", "imtl-l", "famo", "stch")  # from the losses, by torchjd
GRADIENT_WEIGHTS = ("upgrad", "mgda", "pcgrad")  # from the gradients of each task's loss, by torchjd
TASK_WEIGHTS = (*SIMPLEX_WEIGHTS, *SCALARIZERS, *GRADIENT_WEIGHTS)
