"""What record.py does, in parts: the checkpoint and its network, the inputs, and the taps of the two kinds of model."""
