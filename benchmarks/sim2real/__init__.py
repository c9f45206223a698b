"""How well re-weighting does on problems whose answer is known and on real series, and what a step costs."""
