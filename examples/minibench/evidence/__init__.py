"""What the benchmark's results show: intervals, preconditions, claims, figures and the report."""
