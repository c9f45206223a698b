"""The C++ kernels against their peers, held to recorded ratios; and the simulator's time and memory."""
