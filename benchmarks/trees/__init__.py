"""Boosted trees and forests: TreeInfluence against retraining, and its peers."""
