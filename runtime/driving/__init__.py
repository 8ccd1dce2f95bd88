"""Driving: the loop that answers the requests of machines during a run."""
