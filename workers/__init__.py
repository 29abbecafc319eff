"""What runs on the training workers: data, model, engine, and the SFT loop."""
