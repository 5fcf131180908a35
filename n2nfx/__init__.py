"""Model surgery over torch.fx graphs: sparse networks with neuron-to-neuron skips, counted exactly."""
