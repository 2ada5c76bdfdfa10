open("out", "w").write("back\n")
