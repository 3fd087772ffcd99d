"""Contents of a run folder and how they look: metrics, reports, plots."""
