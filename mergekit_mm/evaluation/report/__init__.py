"""Tables and figures of evaluations: lm-eval's result files of a base, experts and merges side by side."""
