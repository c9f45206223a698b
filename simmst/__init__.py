"""simmst: cellular traffic forecasting with Sim-MSTNet, and its hot paths as fast drop-in operators."""

__version__ = "0.1.0"
