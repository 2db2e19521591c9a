"""What is done with a trained pipeline."""
