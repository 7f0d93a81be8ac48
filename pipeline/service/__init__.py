"""The search service: an application that knows nothing of Ray, its page, and Ray Serve around it."""
