"""The processes of a run: on which nodes they are, who starts them, and what their endings mean."""
