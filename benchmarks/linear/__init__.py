"""Linear and kernel models of scikit-learn, refitted instead of retrained."""
