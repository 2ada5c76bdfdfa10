FROM a
ADD --chown=1 x
