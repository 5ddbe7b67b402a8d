"""Three models that each take one modality, merged to one that takes all."""
