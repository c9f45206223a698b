"""The prior: laws of the parameters of simulated cities."""
