"""What a run reports about itself: metric files, progress on the terminal, FLOPs."""
