"""The run log: metrics, plots, and the settings of a resumed run."""
