"""Networks of several hidden layers, whose training is rough: AdamWInfluence."""
