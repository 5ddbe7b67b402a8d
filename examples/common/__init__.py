"""What the examples share: the commands they call, how they count right answers, small models and their training."""
