FROM a
LABEL a=b # note
