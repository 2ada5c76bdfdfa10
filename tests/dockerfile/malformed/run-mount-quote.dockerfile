FROM a
RUN --mount=type=bind,\"x true
