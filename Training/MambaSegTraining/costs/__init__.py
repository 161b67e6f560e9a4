"""What networks cost: parameters and multiply-adds by counting, memory and time by measuring."""
