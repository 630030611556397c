"""Real node processes, killed and damaged for real, checked from outside through ordinary clients."""
