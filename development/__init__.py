"""What `make run` needs on a laptop. Nothing of it is part of the deployed application."""
