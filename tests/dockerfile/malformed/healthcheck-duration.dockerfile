FROM a
HEALTHCHECK --interval=soon CMD true
