"""`/v1/decisions`: wire types, bodies as conversations and questions, probabilities as answers."""
