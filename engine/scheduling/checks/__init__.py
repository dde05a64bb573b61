"""What is refused before it is queued. Errors name the field at fault by its API name."""
