"""Training: one loop for every stage, and the recipe that runs the stages in order."""
