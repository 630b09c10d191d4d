"""What is wrong with a run or a config, found before any process starts."""
