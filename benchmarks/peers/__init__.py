"""What a user would pick instead of Volley, each measured in an environment of its own."""
