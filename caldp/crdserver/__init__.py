"""A serverless CRDS: rules and references for stock clients, deliveries of new ones, and what they affect."""
