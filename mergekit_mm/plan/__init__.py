"""Which task makes which output tensor: inputs matched to each other, policies per role, mergekit's planner."""
