FROM a
RUN --moutn=type=cache true
