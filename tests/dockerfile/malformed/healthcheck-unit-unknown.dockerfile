FROM a
HEALTHCHECK --interval=5sec CMD true
