FROM a
# c
RUN a \

  b

LABEL x=y \
  z=w
BOGUS
