"""The door: numbers, arrays and files that come from users are checked here once, each complaint one sentence."""
