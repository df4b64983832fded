"""The long-running worker and the commands around a trained network."""
