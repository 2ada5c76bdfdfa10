FROM a
ARG X
RUN \
  --mount=from=$X,target=/x \
  true
