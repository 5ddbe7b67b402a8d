"""Task vectors and spectral tools: torch in, torch out; no files, no names, no mergekit."""
