"""What is going to happen, and what to do about it: advice on top of predictions."""
