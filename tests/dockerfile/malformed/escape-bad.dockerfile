# escape=^
FROM a
