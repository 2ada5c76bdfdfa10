FROM a
HEALTHCHECK curl localhost
