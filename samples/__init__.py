"""Programs to try TVP with: the demo, and the zoo that it runs on."""
