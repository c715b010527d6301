"""What tests of obhut, and of what is built on it, share."""
