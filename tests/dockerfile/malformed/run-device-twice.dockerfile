FROM a
RUN --device=name=x,name=y true
