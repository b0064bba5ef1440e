"""What a training step will need of devices that are not there: memory, time, traffic."""
