"""Model plugin `network`: any network of the zoo, by name."""
