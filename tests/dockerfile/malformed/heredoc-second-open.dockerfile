FROM a
COPY <<A <<B /d/
x
A
y
