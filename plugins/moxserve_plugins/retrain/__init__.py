"""Run plugin `retrain`: a new last layer on cached features."""
