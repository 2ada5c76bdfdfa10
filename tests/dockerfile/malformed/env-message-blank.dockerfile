FROM a
ENV Z=${K:?need k}
