FROM a
HEALTHCHECK --retries=x CMD true
