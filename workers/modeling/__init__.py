"""The model to train: its files, its head, LoRA adapters and attention."""
