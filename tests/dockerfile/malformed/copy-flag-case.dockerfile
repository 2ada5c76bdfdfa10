FROM a
COPY --FROM=x a b
