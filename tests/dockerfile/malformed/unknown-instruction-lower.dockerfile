FROM a
rum true
