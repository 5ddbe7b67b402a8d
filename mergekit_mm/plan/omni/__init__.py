"""An omni model before it is made: who brings what to it, its vocabulary, tensors, config and processor."""
