"""What can be attributed: families of models, and how each is trained and queried."""
