"""What is wrong with a picture, read from the adapter's thoughts."""
