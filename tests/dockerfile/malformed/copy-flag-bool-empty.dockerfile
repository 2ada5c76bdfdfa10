FROM a
COPY --parents= a b
