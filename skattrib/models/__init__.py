"""What can be attributed: families of models, and how each is asked and trained."""
