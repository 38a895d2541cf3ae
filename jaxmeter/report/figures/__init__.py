"""The report's figures: pure functions from results to matplotlib's figures."""
