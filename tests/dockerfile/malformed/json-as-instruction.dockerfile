{"FROM": "a"}
